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

// What a solver leaves of k factors.
template <typename T>
struct Solution {
  const T* values;      // [k, d], ascending, contiguous
  Matrices<T> vectors;  // [k, d, d], a column each
  const int* infos;     // [k], not 0: that factor was not solved; nullptr: the values tell
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

// scales [k]: a power of two near 1 / max|K|, or a mark of scale.h. places [k, d + 1]: of each
// row, by place_rows(), and the number of rows that are not zero. packed [k, d, d], contiguous:
// what is to be solved, as pack.h has it.
template <typename T>
const char* launch_eigh_pack(Matrices<T> stack, Selection selection, int64_t d, T* scales,
                             int32_t* places, T* packed, void* stream);

// eigenvalues [k, d] and bases [k, d, d], contiguous, descending, with the scales undone and zero
// rows apart; for a factor that is not solved NaN and the identity. failed [k], if not nullptr: 1
// for factors that a solve should have been possible for, else 0.
template <typename T>
const char* launch_eigh_unpack(Solution<T> solution, const T* scales, const int32_t* places,
                               int64_t k, int64_t d, T* eigenvalues, T* bases, int32_t* failed,
                               void* stream);

}  // namespace soap_fast
