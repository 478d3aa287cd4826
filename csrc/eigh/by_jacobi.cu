// eigh's kernels for small factors: everything from the factor to its basis in one launch.
#include <algorithm>

#include "cuda/launch_error.h"
#include "eigh/by_jacobi.h"
#include "eigh/kernels.h"

namespace soap_fast {
namespace {

constexpr int kThreads = 128;
constexpr int kSharedBytes = 48 * 1024;  // what a block gets without asking for more

// A warp per factor, its workspace in shared memory.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    eigh_jacobi_warp(Matrices<T> stack, Selection selection, int d, T* eigenvalues, T* bases) {
  extern __shared__ double memory[];  // double, for its alignment
  const int warp = threadIdx.x / kWarpSize;
  const int64_t i = blockIdx.x * int64_t(blockDim.x / kWarpSize) + warp;
  if (i >= selection.k) return;
  eigh_by_jacobi(WarpTeam(), d, selected(stack, selection, i), stack.row_stride,
                 stack.column_stride, reinterpret_cast<T*>(memory) + warp * eigh_workspace(d),
                 eigenvalues + i * d, bases + i * d * d);
}

// A thread per factor, its workspace in registers.
template <typename T, int d>
__global__ void __launch_bounds__(kThreads)
    eigh_jacobi_thread(Matrices<T> stack, Selection selection, T* eigenvalues, T* bases) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= selection.k) return;
  T workspace[eigh_workspace(d)];
  eigh_by_jacobi(LoneTeam(), Fixed<d>(), selected(stack, selection, i), stack.row_stride,
                 stack.column_stride, workspace, eigenvalues + i * d, bases + i * d * d);
}

unsigned blocks_for(int64_t factors, int64_t per_block) {
  return static_cast<unsigned>((factors + per_block - 1) / per_block);
}

template <typename T, int d>
void launch_thread(Matrices<T> stack, Selection selection, T* eigenvalues, T* bases,
                   cudaStream_t on) {
  eigh_jacobi_thread<T, d><<<blocks_for(selection.k, kThreads), kThreads, 0, on>>>(
      stack, selection, eigenvalues, bases);
}

}  // namespace

template <typename T>
const char* launch_eigh_jacobi(Matrices<T> stack, Selection selection, int64_t d, T* eigenvalues,
                               T* bases, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (d == 1) {
    launch_thread<T, 1>(stack, selection, eigenvalues, bases, on);
  } else if (d == 2) {
    launch_thread<T, 2>(stack, selection, eigenvalues, bases, on);
  } else if (d == 3) {
    launch_thread<T, 3>(stack, selection, eigenvalues, bases, on);
  } else {
    const int size = static_cast<int>(d);
    const int bytes = eigh_workspace(size) * static_cast<int>(sizeof(T));  // 17.3 kB at the most
    const int warps = std::min(kThreads / kWarpSize, kSharedBytes / bytes);
    eigh_jacobi_warp<<<blocks_for(selection.k, warps), warps * kWarpSize, warps * bytes, on>>>(
        stack, selection, size, eigenvalues, bases);
  }
  return launch_error();
}

template const char* launch_eigh_jacobi(Matrices<float>, Selection, int64_t, float*, float*, void*);
template const char* launch_eigh_jacobi(Matrices<double>, Selection, int64_t, double*, double*,
                                        void*);

}  // namespace soap_fast
