// eigh's kernels: gather and scale before the solve, reverse and unscale after it.
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>

#include "eigh_cuda.h"
#include "eigh_scale.h"
#include "launch_error.h"

namespace soap_fast {
namespace {

constexpr int kThreads = 256;        // a power of two: the maximum is reduced by halving
constexpr int kMostRowBlocks = 256;  // per factor; a row block walks rows with this stride

// Grid: (factors).
template <typename T>
__global__ void eigh_scales(Matrices<T> stack, Selection selection, int64_t d, T smallest_normal,
                            T greatest, T* scales) {
  __shared__ T largest_of[kThreads];
  const T infinity = greatest * 2;
  const T* factor = selected(stack, selection, blockIdx.x);
  T largest = factor ? T(0) : infinity;
  for (int64_t row = 0; factor && row < d; ++row) {
    for (int64_t column = threadIdx.x; column <= row; column += kThreads) {
      const T entry = factor[row * stack.row_stride + column * stack.column_stride];
      const T magnitude = entry < 0 ? -entry : entry;
      // Both comparisons are false for NaN, which thus becomes infinity.
      if (!(magnitude <= largest)) largest = magnitude <= greatest ? magnitude : infinity;
    }
  }
  largest_of[threadIdx.x] = largest;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half && largest_of[threadIdx.x + half] > largest_of[threadIdx.x]) {
      largest_of[threadIdx.x] = largest_of[threadIdx.x + half];
    }
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = scale_for(largest_of[0], smallest_normal, greatest);
}

// Grid: (factors, row blocks).
template <typename T>
__global__ void eigh_pack(Matrices<T> stack, Selection selection, int64_t d, const T* scales,
                          T* packed) {
  const T scale = scales[blockIdx.x];
  const T* factor = selected(stack, selection, blockIdx.x);
  T* target = packed + blockIdx.x * d * d;
  for (int64_t row = blockIdx.y; row < d; row += gridDim.y) {
    for (int64_t column = threadIdx.x; column < d; column += kThreads) {
      const bool read = scale > 0 && column <= row;
      target[row * d + column] =
          read ? factor[row * stack.row_stride + column * stack.column_stride] * scale : T(0);
    }
  }
}

// Grid: (factors, row blocks).
template <typename T>
__global__ void eigh_unpack(const T* values, Matrices<T> vectors, const T* scales, int64_t d,
                            T not_a_number, T* eigenvalues, T* bases) {
  const int64_t i = blockIdx.x;
  const T scale = scales[i];
  const T* ascending = values + i * d;
  const T* factor_vectors = vectors.data + i * vectors.factor_stride;
  const bool solved = scale > 0 && ascending[0] == ascending[0];
  const T unsolved_value = scale == T(kZeroFactor) ? T(0) : not_a_number;
  for (int64_t row = blockIdx.y; row < d; row += gridDim.y) {
    for (int64_t column = threadIdx.x; column < d; column += kThreads) {
      const int64_t mirrored = d - 1 - column;
      bases[(i * d + row) * d + column] =
          solved ? factor_vectors[row * vectors.row_stride + mirrored * vectors.column_stride]
                 : T(row == column);
      if (row == 0) {
        eigenvalues[i * d + column] = solved ? ascending[mirrored] / scale : unsolved_value;
      }
    }
  }
}

dim3 grid_of(int64_t factors, int64_t rows) {
  return dim3(static_cast<unsigned>(factors),
              static_cast<unsigned>(std::min<int64_t>(rows, kMostRowBlocks)));
}

}  // namespace

template <typename T>
const char* launch_eigh_pack(Matrices<T> stack, Selection selection, int64_t d, T* scales,
                             T* packed, void* stream) {
  using Limits = std::numeric_limits<T>;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  eigh_scales<<<grid_of(selection.k, 1), kThreads, 0, on>>>(stack, selection, d, Limits::min(),
                                                            Limits::max(), scales);
  eigh_pack<<<grid_of(selection.k, d), kThreads, 0, on>>>(stack, selection, d, scales, packed);
  return launch_error();
}

template <typename T>
const char* launch_eigh_unpack(const T* values, Matrices<T> vectors, const T* scales, int64_t k,
                               int64_t d, T* eigenvalues, T* bases, void* stream) {
  eigh_unpack<<<grid_of(k, d), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      values, vectors, scales, d, std::numeric_limits<T>::quiet_NaN(), eigenvalues, bases);
  return launch_error();
}

template const char* launch_eigh_pack(Matrices<float>, Selection, int64_t, float*, float*, void*);
template const char* launch_eigh_pack(Matrices<double>, Selection, int64_t, double*, double*,
                                      void*);
template const char* launch_eigh_unpack(const float*, Matrices<float>, const float*, int64_t,
                                        int64_t, float*, float*, void*);
template const char* launch_eigh_unpack(const double*, Matrices<double>, const double*, int64_t,
                                        int64_t, double*, double*, void*);

}  // namespace soap_fast
