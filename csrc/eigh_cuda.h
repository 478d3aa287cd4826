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

// Both launchers return nullptr, or CUDA's words for what went wrong.

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
