// eigh's kernels: gather and scale before the solve, reverse and unscale after it.
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>

#include "cuda/launch_error.h"
#include "eigh/kernels.h"
#include "eigh/pack.h"

namespace soap_fast {
namespace {

constexpr int kThreads = 256;        // a power of two: the maximum is reduced by halving
constexpr int kMostRowBlocks = 256;  // per factor; a row block walks rows with this stride

// Grid: (factors).
template <typename T>
__global__ void eigh_scales(Matrices<T> stack, Selection selection, int64_t d, T smallest_normal,
                            T greatest, T* scales, int32_t* places) {
  __shared__ T largest_of[kThreads];
  __shared__ T of_warps[kWarpSize];
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
  __syncthreads();
  const T scale = scale_for(largest_of[0], smallest_normal, greatest);
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  int32_t* of_factor = places + blockIdx.x * (d + 1);
  if (threadIdx.x == 0) of_factor[d] = static_cast<int32_t>(d);  // for a factor that is not solved
  if (scale <= 0) return;
  const int64_t n = place_rows(BlockTeam<T>{of_warps}, d, factor, stack.row_stride,
                               stack.column_stride, of_factor);
  if (threadIdx.x == 0) of_factor[d] = static_cast<int32_t>(n);
}

// Grid: (factors, row blocks).
template <typename T>
__global__ void eigh_pack(Matrices<T> stack, Selection selection, int64_t d, const T* scales,
                          const int32_t* places, T* packed) {
  const T scale = scales[blockIdx.x];
  const T* factor = selected(stack, selection, blockIdx.x);
  const int32_t* of_factor = places + blockIdx.x * (d + 1);
  T* target = packed + blockIdx.x * d * d;
  for (int64_t row = blockIdx.y; row < d; row += gridDim.y) {
    for (int64_t column = threadIdx.x; column < d; column += kThreads) {
      target[row * d + column] = packed_entry(factor, stack.row_stride, stack.column_stride, scale,
                                              of_factor, of_factor[d], row, column);
    }
  }
}

// Whether the solver solved a factor of the size d; all threads of a block ask alike.
template <typename T>
__device__ bool is_solved(const T* ascending, int64_t d, T greatest, int info) {
  bool finite = true;
  for (int64_t i = threadIdx.x; i < d; i += kThreads) {
    finite &= ascending[i] <= greatest && ascending[i] >= -greatest;  // false for NaN
  }
  return __syncthreads_and(finite && info == 0);
}

// Grid: (factors, row blocks).
template <typename T>
__global__ void eigh_unpack(Solution<T> solution, const T* scales, const int32_t* places, int64_t d,
                            T greatest, T not_a_number, T* eigenvalues, T* bases, int32_t* failed) {
  const int64_t i = blockIdx.x;
  const T scale = scales[i];
  const int32_t* of_factor = places + i * (d + 1);
  const T* ascending = solution.values + i * d;
  const Matrices<T>& vectors = solution.vectors;
  const T* factor_vectors = vectors.data + i * vectors.factor_stride;
  const int info = solution.infos ? solution.infos[i] : 0;
  const bool solved = is_solved(ascending, d, greatest, info) && scale > 0;
  const T unsolved_value = scale == T(kZeroFactor) ? T(0) : not_a_number;
  if (failed && blockIdx.y == 0 && threadIdx.x == 0) failed[i] = scale > 0 && !solved;
  for (int64_t row = blockIdx.y; row < d; row += gridDim.y) {
    for (int64_t column = threadIdx.x; column < d; column += kThreads) {
      bases[(i * d + row) * d + column] =
          solved ? basis_entry(factor_vectors, vectors.row_stride, vectors.column_stride, d,
                               of_factor, of_factor[d], row, column)
                 : T(row == column);
      if (row == 0) {
        eigenvalues[i * d + column] =
            solved ? eigenvalue_of(ascending, scale, d, of_factor[d], column) : unsolved_value;
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
                             int32_t* places, T* packed, void* stream) {
  using Limits = std::numeric_limits<T>;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  eigh_scales<<<grid_of(selection.k, 1), kThreads, 0, on>>>(stack, selection, d, Limits::min(),
                                                            Limits::max(), scales, places);
  eigh_pack<<<grid_of(selection.k, d), kThreads, 0, on>>>(stack, selection, d, scales, places,
                                                          packed);
  return launch_error();
}

template <typename T>
const char* launch_eigh_unpack(Solution<T> solution, const T* scales, const int32_t* places,
                               int64_t k, int64_t d, T* eigenvalues, T* bases, int32_t* failed,
                               void* stream) {
  using Limits = std::numeric_limits<T>;
  eigh_unpack<<<grid_of(k, d), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      solution, scales, places, d, Limits::max(), Limits::quiet_NaN(), eigenvalues, bases, failed);
  return launch_error();
}

template const char* launch_eigh_pack(Matrices<float>, Selection, int64_t, float*, int32_t*, float*,
                                      void*);
template const char* launch_eigh_pack(Matrices<double>, Selection, int64_t, double*, int32_t*,
                                      double*, void*);
template const char* launch_eigh_unpack(Solution<float>, const float*, const int32_t*, int64_t,
                                        int64_t, float*, float*, int32_t*, void*);
template const char* launch_eigh_unpack(Solution<double>, const double*, const int32_t*, int64_t,
                                        int64_t, double*, double*, int32_t*, void*);

}  // namespace soap_fast
