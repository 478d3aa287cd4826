// A product of a tile, staged through memory that the team shares.
#pragma once

#include "linalg/team.h"

namespace soap_fast {

// A tile is covered by 16 x 16 places, each of kMicro x kMicro entries that one thread keeps in
// registers; float64 takes twice the memory, and a block has 48 KiB for two tiles and the staging.
constexpr int kPlaces = 16;
template <typename T>
constexpr int kMicro = sizeof(T) == 4 ? 4 : 2;
template <typename T>
constexpr int kTile = kPlaces * kMicro<T>;

// Rows begin at multiples of 16 bytes, of which one instruction fetches or stores all, and eight
// that follow each other do not meet in one bank of shared memory.
constexpr int kAligned = 16;  // bytes
template <typename T>
constexpr int kTileLeading = kTile<T> + kAligned / int(sizeof(T));
template <typename T>
constexpr int kTileElements = kTile<T> * kTileLeading<T>;

// Columns of p and q that are staged at once, and the elements of memory for them.
constexpr int kStagedDepth = 16;
template <typename T>
constexpr int kStagingElements = 2 * kStagedDepth * kTileLeading<T>;

// Copies n entries; on the device the first is aligned in memory, and units of so much move at
// once.
template <int n, typename T>
SOAP_FAST_HOST_DEVICE void load_aligned(const T* from, T (&to)[n]) {
  static_assert(n * sizeof(T) % kAligned == 0, "whole units");
#ifdef __CUDA_ARCH__
  struct alignas(kAligned) Unit {
    T of[kAligned / sizeof(T)];
  };
  constexpr int in_unit = kAligned / sizeof(T);
  for (int k = 0; k < n; k += in_unit) {
    const Unit unit = *reinterpret_cast<const Unit*>(from + k);
    for (int v = 0; v < in_unit; ++v) to[k + v] = unit.of[v];
  }
#else
  for (int k = 0; k < n; ++k) to[k] = from[k];
#endif
}
template <int n, typename T>
SOAP_FAST_HOST_DEVICE void store_aligned(const T (&from)[n], T* to) {
  static_assert(n * sizeof(T) % kAligned == 0, "whole units");
#ifdef __CUDA_ARCH__
  struct alignas(kAligned) Unit {
    T of[kAligned / sizeof(T)];
  };
  constexpr int in_unit = kAligned / sizeof(T);
  for (int k = 0; k < n; k += in_unit) {
    Unit unit;
    for (int v = 0; v < in_unit; ++v) unit.of[v] = from[k + v];
    *reinterpret_cast<Unit*>(to + k) = unit;
  }
#else
  for (int k = 0; k < n; ++k) to[k] = from[k];
#endif
}

namespace tile_product_detail {

// staged [kStagedDepth, kTileLeading]: columns [first, depth) of source [rows, depth], transposed,
// zeros where it ends.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void stage(const Team& team, int rows, int64_t first, int64_t depth,
                                 const T* source, int64_t ld, T* staged) {
  for (int e = team.rank(); e < kTile<T> * kStagedDepth; e += team.size()) {
    const int row = e / kStagedDepth, k = e % kStagedDepth;
    const bool inside = row < rows && first + k < depth;
    staged[k * kTileLeading<T> + row] = inside ? source[row * ld + first + k] : T(0);
  }
}

template <typename T>
SOAP_FAST_HOST_DEVICE void accumulate(const T* p, const T* q, T (&totals)[kMicro<T>][kMicro<T>]) {
  for (int k = 0; k < kStagedDepth; ++k) {
    T of_p[kMicro<T>], of_q[kMicro<T>];
    for (int u = 0; u < kMicro<T>; ++u) {
      of_p[u] = p[k * kTileLeading<T> + kPlaces * u];
      of_q[u] = q[k * kTileLeading<T> + kPlaces * u];
    }
    for (int u = 0; u < kMicro<T>; ++u) {
      for (int v = 0; v < kMicro<T>; ++v) totals[u][v] += of_p[u] * of_q[v];
    }
  }
}

}  // namespace tile_product_detail

// receive(i, j, Σ_k p[i, k] q[j, k]) for i < rows, j < columns, both at most kTile; p and q
// row-major with `depth` columns. The sum runs in one order whatever the team: same bits.
// `staging` holds kStagingElements.
template <typename T, typename Team, typename Receive>
SOAP_FAST_HOST_DEVICE void tile_product(const Team& team, int rows, int columns, int64_t depth,
                                        const T* p, int64_t ldp, const T* q, int64_t ldq,
                                        T* staging, const Receive& receive) {
  using namespace tile_product_detail;
  constexpr int kAllPlaces = kPlaces * kPlaces;
  constexpr int kPerThread = (kAllPlaces + Team::kLeastSize - 1) / Team::kLeastSize;
  T* staged_q = staging + kStagedDepth * kTileLeading<T>;
  T totals[kPerThread][kMicro<T>][kMicro<T>] = {};
  for (int64_t first = 0; first < depth; first += kStagedDepth) {
    stage(team, rows, first, depth, p, ldp, staging);
    stage(team, columns, first, depth, q, ldq, staged_q);
    team.sync();
    for (int n = 0; n < kPerThread; ++n) {
      const int place = team.rank() + n * team.size();
      if (place >= kAllPlaces) break;
      accumulate<T>(staging + place / kPlaces, staged_q + place % kPlaces, totals[n]);
    }
    team.sync();
  }
  for (int n = 0; n < kPerThread; ++n) {
    const int place = team.rank() + n * team.size();
    if (place >= kAllPlaces) break;
    for (int u = 0; u < kMicro<T>; ++u) {
      for (int v = 0; v < kMicro<T>; ++v) {
        const int i = place / kPlaces + kPlaces * u, j = place % kPlaces + kPlaces * v;
        if (i < rows && j < columns) receive(i, j, totals[n][u][v]);
      }
    }
  }
}

}  // namespace soap_fast
