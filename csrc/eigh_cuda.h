// Launchers of eigh's CUDA kernels. No torch header: pointers, sizes, a stream.
#pragma once

#include <cstdint>

namespace soap_fast {

// Matrices [count, d, d] of any strides, in elements.
template <typename T>
struct Matrices {
  const T* data;
  int64_t factor_stride, row_stride, column_stride;
};

// k indices into a stack of n.
struct Selection {
  const int32_t* indices;
  int64_t stride;
  int64_t k, n;
};

#ifdef __CUDACC__
// Selections are not read on the host, so an index outside the stack is found here: nullptr. The
// factor then counts as not finite.
template <typename T>
__device__ const T* selected(const Matrices<T>& stack, const Selection& selection, int64_t i) {
  const int64_t index = selection.indices[i * selection.stride];
  if (index < 0 || index >= selection.n) return nullptr;
  return stack.data + index * stack.factor_stride;
}
#endif

// The launchers return nullptr, or CUDA's words for what went wrong.

// All of eigh for d <= kJacobiLargest: eigenvalues [k, d] and bases [k, d, d], contiguous.
template <typename T>
const char* launch_eigh_jacobi(Matrices<T> stack, Selection selection, int64_t d, T* eigenvalues,
                               T* bases, void* stream);

// scales [k]: a power of two near 1 / max|K|, or a mark of eigh_scale.h. packed [k, d, d]: lower
// triangles, scaled; zeros where the mark says that there is nothing to solve.
template <typename T>
const char* launch_eigh_pack(Matrices<T> stack, Selection selection, int64_t d, T* scales,
                             T* packed, void* stream);

// From ascending values [k, d] and vectors [k, d, d]: eigenvalues [k, d] and bases [k, d, d],
// descending, with the scales undone. All but the vectors contiguous.
template <typename T>
const char* launch_eigh_unpack(const T* values, Matrices<T> vectors, const T* scales, int64_t k,
                               int64_t d, T* eigenvalues, T* bases, void* stream);

}  // namespace soap_fast
