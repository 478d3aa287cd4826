// A product of a tile, staged through memory that the team shares.
#pragma once

#include <cassert>

#include "linalg/team.h"

namespace soap_fast {

// A tile is covered by 16 x 16 places, each of kMicro x kMicro entries that one thread keeps in
// registers; float64 takes twice the memory, and a block has 48 KiB for two tiles and the staging.
constexpr int kPlaces = 16;
template <typename T>
constexpr int kMicro = sizeof(T) == 4 ? 4 : 2;
template <typename T>
constexpr int kTile = kPlaces * kMicro<T>;

SOAP_FAST_HOST_DEVICE constexpr int tiles_of(int rows, int tile) {
  return (rows + tile - 1) / tile;
}

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

// What one instruction moves.
template <typename T>
struct alignas(kAligned) Unit {
  T of[kAligned / sizeof(T)];
};

// Copies n entries; on the device the first is aligned in memory, and units of so much move at
// once.
template <int n, typename T>
SOAP_FAST_HOST_DEVICE void load_aligned(const T* from, T (&to)[n]) {
  static_assert(n * sizeof(T) % kAligned == 0, "whole units");
#ifdef __CUDA_ARCH__
  constexpr int in_unit = kAligned / sizeof(T);
  for (int k = 0; k < n; k += in_unit) {
    const Unit<T> unit = *reinterpret_cast<const Unit<T>*>(from + k);
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
  constexpr int in_unit = kAligned / sizeof(T);
  for (int k = 0; k < n; k += in_unit) {
    Unit<T> unit;
    for (int v = 0; v < in_unit; ++v) unit.of[v] = from[k + v];
    *reinterpret_cast<Unit<T>*>(to + k) = unit;
  }
#else
  for (int k = 0; k < n; ++k) to[k] = from[k];
#endif
}

namespace tile_product_detail {

// Rows of a stage that a thread fetches from memory before it puts them into the staging. What it
// does between the two need not wait for the memory.
template <typename T, typename Team>
constexpr int kFetched = (kTile<T> * kStagedDepth + Team::kLeastSize - 1) / Team::kLeastSize;

// visit(n, row, k) for the thread's elements of a stage. A warp takes eight columns of a row from
// each of the kMicro rows that a thread will multiply at once: whole sectors of memory, and stores
// to as many banks.
template <typename T, typename Team, typename Visit>
SOAP_FAST_HOST_DEVICE void visit_stage(const Team& team, const Visit& visit) {
  constexpr int kAdjacent = 8, kOfPlace = kAdjacent * kMicro<T>;
  SOAP_FAST_UNROLL
  for (int n = 0; n < kFetched<T, Team>; ++n) {
    const int e = team.rank() + n * team.size();
    if (e >= kTile<T> * kStagedDepth) break;
    const int row = e / kAdjacent % kMicro<T> * kPlaces + e / kOfPlace % kPlaces;
    visit(n, row, e % kAdjacent + e / (kOfPlace * kPlaces) * kAdjacent);
  }
}

// Columns [0, kStagedDepth) of source [rows, ld], whose last row also stands for those behind it:
// what comes of these is not received.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void fetch(const Team& team, int rows, const T* source, int64_t ld,
                                 T (&fetched)[kFetched<T, Team>]) {
  visit_stage<T>(team, [&](int n, int row, int k) {
    fetched[n] = source[(row < rows ? row : rows - 1) * int(ld) + k];
  });
}

// staged [kStagedDepth, kTileLeading]: the transpose, and what one thread multiplies side by side.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void put(const Team& team, const T (&fetched)[kFetched<T, Team>], T* staged) {
  visit_stage<T>(team, [&](int n, int row, int k) {
    staged[k * kTileLeading<T> + row % kPlaces * kMicro<T> + row / kPlaces] = fetched[n];
  });
}

template <typename T>
SOAP_FAST_HOST_DEVICE void accumulate(const T* p, const T* q, T (&totals)[kMicro<T>][kMicro<T>]) {
  SOAP_FAST_UNROLL_BY_8
  for (int k = 0; k < kStagedDepth; ++k) {
    T of_p[kMicro<T>], of_q[kMicro<T>];
    load_aligned(p + k * kTileLeading<T>, of_p);
    load_aligned(q + k * kTileLeading<T>, of_q);
    for (int u = 0; u < kMicro<T>; ++u) {
      for (int v = 0; v < kMicro<T>; ++v) totals[u][v] += of_p[u] * of_q[v];
    }
  }
}

}  // namespace tile_product_detail

// receive(i, j, Σ_k p[i, k] q[j, k]) for i < rows, j < columns, both at most kTile; p and q
// row-major with `depth` columns, a multiple of kStagedDepth. The sum runs in one order whatever
// the team: same bits. `staging` holds kStagingElements and is aligned.
template <typename T, typename Team, typename Receive>
SOAP_FAST_HOST_DEVICE void tile_product(const Team& team, int rows, int columns, int64_t depth,
                                        const T* p, int64_t ldp, const T* q, int64_t ldq,
                                        T* staging, const Receive& receive) {
  using namespace tile_product_detail;
  assert(rows > 0 && columns > 0 && depth % kStagedDepth == 0);
  constexpr int kAllPlaces = kPlaces * kPlaces;
  constexpr int kPerThread = (kAllPlaces + Team::kLeastSize - 1) / Team::kLeastSize;
  T* staged_q = staging + kStagedDepth * kTileLeading<T>;
  T totals[kPerThread][kMicro<T>][kMicro<T>] = {};
  T of_p[kFetched<T, Team>], of_q[kFetched<T, Team>];
  const auto fetch_from = [&](int64_t first) {
    fetch(team, rows, p + first, ldp, of_p);
    fetch(team, columns, q + first, ldq, of_q);
  };
  if (depth > 0) fetch_from(0);
  for (int64_t first = 0; first < depth; first += kStagedDepth) {
    put(team, of_p, staging);
    put(team, of_q, staged_q);
    team.sync();
    // At the end once more the last, since a compiler may put off what stands under a condition.
    fetch_from(first + (first + kStagedDepth < depth ? kStagedDepth : 0));
    for (int n = 0; n < kPerThread; ++n) {
      const int place = team.rank() + n * team.size();
      if (place >= kAllPlaces) break;
      accumulate<T>(staging + place / kPlaces * kMicro<T>, staged_q + place % kPlaces * kMicro<T>,
                    totals[n]);
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
