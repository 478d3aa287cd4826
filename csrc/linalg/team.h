// The threads that work on one matrix: a warp, a block, or on the host a single thread.
//
// An algorithm is a template over such a team and its matrix lies in memory that all of the team
// see, so that what runs on the GPU is compiled, tested and checked by sanitizers without one.
// A team offers rank(), size() >= kLeastSize, sync() and sum(x), max(x), which hand every thread
// the same bits; all threads must call the last three alike. by_first_warp(work) calls work(team)
// for a part of it as a team of its own, where few threads that wait for each other often are
// faster than all; the rest go on.
#pragma once

#include <cstdint>
#include <limits>

#ifdef __CUDACC__
#define SOAP_FAST_HOST_DEVICE __host__ __device__
#define SOAP_FAST_UNROLL _Pragma("unroll")         // where an array must become registers
#define SOAP_FAST_UNROLL_BY_8 _Pragma("unroll 8")  // and not more, where registers are few
#define SOAP_FAST_NO_UNROLL _Pragma("unroll 1")
#else
#define SOAP_FAST_HOST_DEVICE
#if defined(__GNUC__) && !defined(__clang__)
#define SOAP_FAST_UNROLL _Pragma("GCC unroll 16")
#else
#define SOAP_FAST_UNROLL
#endif
#define SOAP_FAST_UNROLL_BY_8
#define SOAP_FAST_NO_UNROLL
#endif

namespace soap_fast {

// std::numeric_limits as constants: its functions cannot be called on the device.
template <typename T>
struct Float {
  static constexpr T epsilon = std::numeric_limits<T>::epsilon();
  static constexpr T smallest_normal = std::numeric_limits<T>::min();
  static constexpr T greatest = std::numeric_limits<T>::max();
  static constexpr T infinity = std::numeric_limits<T>::infinity();
  static constexpr T not_a_number = std::numeric_limits<T>::quiet_NaN();
};

// A size known to the compiler, where loops should unroll and arrays become registers.
template <int d>
struct Fixed {
  SOAP_FAST_HOST_DEVICE constexpr operator int() const { return d; }
};

// One thread: the host, and a GPU thread with a tiny matrix of its own.
struct LoneTeam {
  static constexpr int kLeastSize = 1;
  SOAP_FAST_HOST_DEVICE static constexpr int rank() { return 0; }
  SOAP_FAST_HOST_DEVICE static constexpr int size() { return 1; }
  SOAP_FAST_HOST_DEVICE static void sync() {}
  template <typename Work>
  SOAP_FAST_HOST_DEVICE static void by_first_warp(const Work& work) {
    work(LoneTeam());
  }
  template <typename T>
  SOAP_FAST_HOST_DEVICE static T sum(T x) {
    return x;
  }
  template <typename T>
  SOAP_FAST_HOST_DEVICE static T max(T x) {
    return x;
  }
};

#ifdef __CUDACC__

constexpr int kWarpSize = 32;

// One full warp of a block whose size is a multiple of 32.
struct WarpTeam {
  static constexpr int kLeastSize = kWarpSize;
  __device__ static int rank() { return threadIdx.x % kWarpSize; }
  __device__ static constexpr int size() { return kWarpSize; }
  __device__ static void sync() { __syncwarp(); }
  template <typename Work>
  __device__ static void by_first_warp(const Work& work) {
    work(WarpTeam());
  }

  // Partners add the same two numbers, so that all lanes end with the same bits.
  template <typename T>
  __device__ static T sum(T x) {
    for (int apart = kWarpSize / 2; apart > 0; apart /= 2)
      x += __shfl_xor_sync(0xffffffffu, x, apart);
    return x;
  }
  template <typename T>
  __device__ static T max(T x) {
    for (int apart = kWarpSize / 2; apart > 0; apart /= 2) {
      const T other = __shfl_xor_sync(0xffffffffu, x, apart);
      if (other > x) x = other;
    }
    return x;
  }
};

// All threads of a block, whose size is a multiple of 32, at least 256 and at most 1024: kThreads
// of them, or as many as were launched. The kernel hands in the shared memory for one T per warp.
template <typename T, int kThreads = 0>
struct BlockTeam {
  static constexpr int kLeastSize = kThreads > 0 ? kThreads : 256;
  T* of_warps;  // [32], shared

  __device__ static int rank() { return kThreads > 0 ? threadIdx.x % kThreads : threadIdx.x; }
  __device__ static int size() { return kThreads > 0 ? kThreads : blockDim.x; }
  __device__ static void sync() { __syncthreads(); }
  template <typename Work>
  __device__ static void by_first_warp(const Work& work) {
    if (rank() < kWarpSize) work(WarpTeam());
  }

  __device__ T sum(T x) const {
    publish(WarpTeam::sum(x));
    T total = of_warps[0];
    for (int w = 1; w < size() / kWarpSize; ++w) total += of_warps[w];
    sync();
    return total;
  }
  __device__ T max(T x) const {
    publish(WarpTeam::max(x));
    T largest = of_warps[0];
    for (int w = 1; w < size() / kWarpSize; ++w) {
      if (of_warps[w] > largest) largest = of_warps[w];
    }
    sync();
    return largest;
  }

 private:
  __device__ void publish(T of_warp) const {
    if (rank() % kWarpSize == 0) of_warps[rank() / kWarpSize] = of_warp;
    sync();
  }
};

#endif  // __CUDACC__

}  // namespace soap_fast
