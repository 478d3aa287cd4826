// What every operator has of torch: tensors, its refusals, and torch's own operators by name. What
// differs between the versions of torch that we build and run on stands in common.cpp, and nowhere
// else in csrc.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace soap_fast {

using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;

// STD_TORCH_CHECK would put the file and line of our source before the sentence.
template <typename... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Throws what torch says of its last failure, under the operator's name.
[[noreturn]] void throw_failure(const char* name);

// Arguments lie in `stack`, and results in their place afterwards.
template <size_t n>
void call_operator(const char* name, const char* overload, std::array<StableIValue, n>& stack) {
  if (torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION)) throw_failure(name);
}

}  // namespace soap_fast
