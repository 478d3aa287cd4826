// eigh on CUDA, torch's side: a stack as our launchers take it, and the larger factors by cuSOLVER.
#pragma once

#include <cstdint>
#include <vector>

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

// Factors [first, first + count) of a selection, left to torch's solver.
struct Leftover {
  size_t call;
  int64_t first, count;
  bool failed;  // in their own dtype, or else: cuSOLVER does not take them
};

// Solves what it can. The results are there for `current`, torch's current stream, and the host has
// waited for them once: what has failed is known.
std::vector<Leftover> eigh_cusolver(const std::vector<StackCall>& calls, void* current);

}  // namespace soap_fast
