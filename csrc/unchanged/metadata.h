// What a launch relies on of tensors besides their addresses, as it was when they were seen.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace soap_fast {

class Metadata {
 public:
  void add(const at::Tensor& tensor);

  size_t size() const { return seen_.size(); }

  // Whether a tensor has memory, and the keys, dtype, device, sizes and strides of the one added as
  // number `index`. Keys tell of layouts, of a view that is negated, and of tensors made of others.
  bool holds(size_t index, const at::Tensor& tensor) const;

 private:
  struct Seen {
    c10::DispatchKeySet keys;
    caffe2::TypeMeta dtype;
    c10::Device device;
    int64_t dim;
    size_t first;  // of its numbers
  };
  std::vector<Seen> seen_;
  std::vector<int64_t> numbers_;  // of each tensor its sizes, then its strides
};

// As `Tensor.data_ptr` in Python.
inline int64_t address_of(const at::Tensor& tensor) {
  return reinterpret_cast<int64_t>(tensor.mutable_data_ptr());
}

}  // namespace soap_fast
