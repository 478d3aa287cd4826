// Householder QR of stacks of matrices, one matrix per warp or per block.
#include <algorithm>

#include "householder.h"
#include "householder_cuda.h"
#include "launch_error.h"

namespace soap_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpLargest = 32;         // larger matrices have a block each
constexpr int kSharedBytes = 48 * 1024;  // what a block gets without asking for more

// Odd, so that neither rows nor columns of a matrix meet in one bank of shared memory.
__host__ __device__ constexpr int leading(int d) { return d | 1; }

template <typename T>
__global__ void __launch_bounds__(kThreads) householder_warp(T* matrices, int64_t count, int d) {
  extern __shared__ double memory[];  // double, for its alignment
  const int warp = threadIdx.x / kWarpSize, ld = leading(d);
  const int64_t i = blockIdx.x * int64_t(blockDim.x / kWarpSize) + warp;
  if (i >= count) return;
  const WarpTeam team;
  T* a = reinterpret_cast<T*>(memory) + warp * d * ld;
  T* matrix = matrices + i * d * d;
  for (int e = team.rank(); e < d * d; e += team.size()) a[e / d * ld + e % d] = matrix[e];
  team.sync();
  householder_q(team, d, ld, a);
  for (int e = team.rank(); e < d * d; e += team.size()) matrix[e] = a[e / d * ld + e % d];
}

// In global memory, as far as the caches do not hold it.
template <typename T>
__global__ void __launch_bounds__(kThreads) householder_block(T* matrices, int d) {
  __shared__ T of_warps[kThreads / kWarpSize];
  householder_q(BlockTeam<T>{of_warps}, d, d, matrices + blockIdx.x * int64_t(d) * d);
}

}  // namespace

template <typename T>
const char* launch_householder(T* matrices, int64_t count, int64_t d, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (count == 0 || d == 0) return nullptr;
  if (d > kHouseholderLargest) return "householder: a matrix of more than 46340 columns";
  const int size = static_cast<int>(d);
  if (size > kWarpLargest) {
    householder_block<<<static_cast<unsigned>(count), kThreads, 0, on>>>(matrices, size);
    return launch_error();
  }
  const int bytes = size * leading(size) * static_cast<int>(sizeof(T));
  const int warps = std::min(kThreads / kWarpSize, kSharedBytes / bytes);
  const unsigned blocks = static_cast<unsigned>((count + warps - 1) / warps);
  householder_warp<<<blocks, warps * kWarpSize, warps * bytes, on>>>(matrices, count, size);
  return launch_error();
}

template const char* launch_householder(float*, int64_t, int64_t, void*);
template const char* launch_householder(double*, int64_t, int64_t, void*);

}  // namespace soap_fast
