// Operators of torch, called by name. What differs between the versions of torch that we build and
// run on stands in dispatch.cpp, and nowhere else in csrc.
#pragma once

#include <torch/csrc/stable/library.h>

#include <array>

namespace soap_fast {

// Throws what torch says of its last failure, under the operator's name.
[[noreturn]] void throw_failure(const char* name);

// Arguments lie in `stack`, and results in their place afterwards.
template <size_t n>
void call_operator(const char* name, const char* overload, std::array<StableIValue, n>& stack) {
  if (torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION)) throw_failure(name);
}

}  // namespace soap_fast
