#include "unchanged/metadata.h"

#include <algorithm>

namespace soap_fast {

namespace {

// Whether its storage was resized to 0; its address is then what a view adds to none.
bool is_freed(const at::Tensor& tensor) {
  return tensor.has_storage() && tensor.storage().nbytes() == 0 && tensor.numel() > 0;
}

}  // namespace

void Metadata::add(const at::Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  seen_.push_back(
      {tensor.key_set(), tensor.dtype(), tensor.device(), tensor.dim(), numbers_.size()});
  numbers_.insert(numbers_.end(), sizes.begin(), sizes.end());
  numbers_.insert(numbers_.end(), strides.begin(), strides.end());
}

bool Metadata::holds(size_t index, const at::Tensor& tensor) const {
  const Seen& seen = seen_[index];
  if (tensor.key_set() != seen.keys || tensor.dtype() != seen.dtype ||
      tensor.device() != seen.device || tensor.dim() != seen.dim || is_freed(tensor)) {
    return false;
  }
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const auto first = numbers_.begin() + seen.first;
  return std::equal(sizes.begin(), sizes.end(), first) &&
         std::equal(strides.begin(), strides.end(), first + seen.dim);
}

}  // namespace soap_fast
