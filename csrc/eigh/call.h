// One stack of an eigh call on CUDA, as our launchers take it.
#pragma once

#include <cstdint>

#include "eigh/eigh.h"
#include "eigh/kernels.h"

namespace soap_fast {

// What is asked of a stack and where the results go; nothing in it is empty.
struct StackCall {
  Tensor stack;        // [n, d, d]
  Tensor selection;    // [k]
  Tensor eigenvalues;  // [k, d]
  Tensor bases;        // [k, d, d]

  int64_t d() const { return stack.size(1); }
  int64_t k() const { return selection.size(0); }
  bool is_wide() const { return stack.scalar_type() == torch::headeronly::ScalarType::Double; }

  // Factors [first, first + count) of the selection.
  Selection part(int64_t first, int64_t count) const {
    const int64_t step = selection.stride(0);
    return {selection.const_data_ptr<int32_t>() + first * step, step, count, stack.size(0)};
  }
  template <typename T>
  T* eigenvalues_from(int64_t first) const {
    return eigenvalues.mutable_data_ptr<T>() + first * d();
  }
  template <typename T>
  T* bases_from(int64_t first) const {
    return bases.mutable_data_ptr<T>() + first * d() * d();
  }
};

template <typename T>
Matrices<T> matrices_of(const Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

inline void check_launch(const char* error) {
  check(error == nullptr, "eigh: a CUDA kernel did not start: ", error ? error : "");
}

}  // namespace soap_fast
