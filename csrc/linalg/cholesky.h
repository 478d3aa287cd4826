// Cholesky factor of a tile and its inverse, in the place of each other, and products with the
// latter, for one team.
#pragma once

#include <cmath>

#include "linalg/tile_product.h"

namespace soap_fast {

constexpr int kNoFailedPivot = -1;

namespace tile_cholesky {

constexpr int kBlock = 16;         // columns that one warp factors before all threads go on
constexpr int kHalf = kBlock / 2;  // of a block's row: what one lane of a warp keeps
constexpr int kLanes = 2 * kBlock;

template <typename T>
SOAP_FAST_HOST_DEVICE T inverse_root(T x) {
#ifdef __CUDA_ARCH__
  return rsqrt(x);  // to two units in the last place, in half the cycles
#else
  return 1 / std::sqrt(x);
#endif
}

// 1 / sqrt(pivot), of one that is taken for `lift` as factor_tile() says; notes the first that
// fails.
template <typename T>
struct Pivots {
  T lift, inverse_of_lift = inverse_root(lift);
  int failed = kNoFailedPivot;

  SOAP_FAST_HOST_DEVICE T inverse(T pivot, int row) {
    const bool is_lifted = !(pivot > 0) && pivot >= -lift;
    const T taken = is_lifted ? lift : pivot, root = inverse_root(pivot);
    if (!(taken > 0 && taken <= Float<T>::greatest) && failed == kNoFailedPivot) {
      failed = row;  // for NaN too
    }
    return is_lifted ? inverse_of_lift : root;
  }
};

// Rows [d, padded) of the lower triangle become those of the identity.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void pad(const Team& team, int d, int padded, T* tile) {
  for (int e = team.rank(); e < (padded - d) * padded; e += team.size()) {
    const int row = d + e / padded, column = e % padded;
    if (column <= row) tile[row * kTileLeading<T> + column] = T(row == column);
  }
  if (d < padded) team.sync();
}

// A = L Lᵀ of the block of a tile at [first, first], in its place: Lᵀ above the diagonal, on it the
// inverses of L's; below it nothing of meaning is left. Only from the rows of the block before have
// no multiples been subtracted. Returns the block's first row that fails, to all threads.
//
// Each lane keeps half a row of A, of both triangles. A step hands rows j and j + 1 to the others,
// by their place in the tile, and what row j + 1 loses to row j everyone finds for himself: handing
// over and a root are what a step waits for. Columns before j are of no meaning then, but neither
// are they of any use.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE int factor_block(const Team& team, T lift, int first, T* tile) {
  constexpr int ld = kTileLeading<T>;
  constexpr int kPerThread = (kLanes + Team::kLeastSize - 1) / Team::kLeastSize;
  T* block = tile + first * (ld + 1);
  const T* before = block - kBlock * ld;
  T entries[kPerThread][kHalf], inverses[kPerThread];
  // visit(entries, inverse, their row, their first column)
  const auto visit_mine = [&](const auto& visit) {
    for (int n = 0; n < kPerThread; ++n) {
      const int lane = team.rank() + n * team.size();
      if (lane < kLanes) visit(entries[n], inverses[n], lane % kBlock, lane / kBlock * kHalf);
    }
  };
  visit_mine([&](auto& mine, T&, int row, int left) {
    for (int v = 0; v < kHalf; ++v) {
      const int c = left + v;
      mine[v] = c <= row ? block[row * ld + c] : block[c * ld + row];
    }
    if (first == 0) return;
    SOAP_FAST_UNROLL
    for (int k = 0; k < kBlock; ++k) {
      T theirs[kHalf];
      load_aligned(before + k * ld + left, theirs);
      const T multiple = before[k * ld + row];
      for (int v = 0; v < kHalf; ++v) mine[v] -= multiple * theirs[v];
    }
  });
  team.sync();
  Pivots<T> pivots{lift};
  SOAP_FAST_UNROLL
  for (int j = 0; j < kBlock; j += 2) {
    T *one = block + j * ld, *other = one + ld;
    visit_mine([&](const auto& mine, T&, int row, int left) {
      if (row == j || row == j + 1) store_aligned(mine, block + row * ld + left);
    });
    team.sync();
    const T of_one = pivots.inverse(one[j], j), share = one[j + 1] * of_one * of_one;
    const T of_other = pivots.inverse(other[j + 1] - share * one[j + 1], j + 1);
    visit_mine([&](auto& mine, T& inverse, int row, int left) {
      T theirs[kHalf], others[kHalf];
      load_aligned(one + left, theirs);
      load_aligned(other + left, others);
      const T multiple = one[row] * of_one * of_one;
      const T of_others = (other[row] - share * one[row]) * of_other * of_other;
      for (int v = 0; v < kHalf; ++v) {
        others[v] -= share * theirs[v];
        if (row > j) mine[v] -= multiple * theirs[v];
        if (row > j + 1) mine[v] -= of_others * others[v];
      }
      if (row == j) inverse = of_one;
      if (row == j + 1) inverse = of_other;
    });
  }
  team.sync();
  visit_mine([&](auto& mine, T& inverse, int row, int left) {
    for (int v = 0; v < kHalf; ++v) mine[v] = left + v == row ? inverse : mine[v] * inverse;
    store_aligned(mine, block + row * ld + left);
  });
  return pivots.failed;
}

// Rows [first, first + kBlock) of what factor_tile() leaves, of which L's triangle is there: a
// thread solves for a column each. W's own triangle, with zeros, goes to `inverse` [kBlock,
// kBlock], since L's is still read.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void solve_rows(const Team& team, int first, int padded, T* tile,
                                      T* inverse) {
  constexpr int ld = kTileLeading<T>;
  T* rows = tile + first * ld;
  for (int c = team.rank(); c < padded; c += team.size()) {
    const int own = c - first;  // of the block itself: a column of the identity
    T column[kBlock];
    if (own >= kBlock) {
      load_aligned(tile + c * ld + first, column);
    } else {
      for (int m = 0; m < kBlock; ++m) column[m] = own < 0 ? rows[m * ld + c] : T(m == own);
    }
    SOAP_FAST_UNROLL
    for (int j = 0; j < kBlock; ++j) {
      T of_l[kBlock];
      load_aligned(rows + j * ld + first, of_l);
      column[j] *= of_l[j];
      SOAP_FAST_UNROLL
      for (int m = j + 1; m < kBlock; ++m) column[m] -= of_l[m] * column[j];
    }
    const bool is_within = own >= 0 && own < kBlock;
    for (int m = 0; m < kBlock; ++m) {
      (is_within ? inverse[m * kBlock + own] : rows[m * ld + c]) = column[m];
    }
  }
}

// W's triangle of a block to its place.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void store_inverse(const Team& team, int first, const T* inverse, T* tile) {
  T* block = tile + first * (kTileLeading<T> + 1);
  for (int e = team.rank(); e < kBlock * kBlock; e += team.size()) {
    const int m = e / kBlock, c = e % kBlock;
    if (c < m) block[m * kTileLeading<T> + c] = inverse[e];
  }
}

// The rows behind a block, up to their diagonal, lose their multiples of its rows. The next block
// on the diagonal is left to factor_block(), which need not wait for the others then: the last
// threads of a team come first.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void update_rows(const Team& team, int first, int padded, T* tile,
                                       const T* inverse) {
  constexpr int ld = kTileLeading<T>, micro = kMicro<T>;
  const T* rows = tile + first * ld;
  const int next = first + kBlock;
  // Of micro x micro entries each: a row has as many as its number and one, and two of them, the
  // nth and the nth from the end, have as many as any other two.
  const int top = next / micro, bottom = padded / micro, of_two = top + bottom + 1;
  for (int e = team.size() - 1 - team.rank(); e < (bottom - top) / 2 * of_two; e += team.size()) {
    const int two = e / of_two, place = e % of_two;
    const bool is_upper = place <= top + two;
    const int i = micro * (is_upper ? top + two : bottom - 1 - two);
    const int c = micro * (is_upper ? place : place - (top + two + 1));
    if (c >= next && i < next + kBlock) continue;
    const bool is_within = c >= first && c < next;
    const T* of_columns = is_within ? inverse + (c - first) : rows + c;
    const int step = is_within ? kBlock : ld;
    T mine[micro][micro];
    for (int u = 0; u < micro; ++u) {
      if (is_within) {  // what was there has gone into the block's rows
        for (int v = 0; v < micro; ++v) mine[u][v] = 0;
      } else {
        load_aligned(tile + (i + u) * ld + c, mine[u]);
      }
    }
    for (int k = 0; k < kBlock; ++k) {
      T of_row[micro], of_column[micro];
      load_aligned(rows + k * ld + i, of_row);
      load_aligned(of_columns + k * step, of_column);
      for (int u = 0; u < micro; ++u) {
        for (int v = 0; v < micro; ++v) mine[u][v] -= of_row[u] * of_column[v];
      }
    }
    for (int u = 0; u < micro; ++u) store_aligned(mine[u], tile + (i + u) * ld + c);
  }
}

}  // namespace tile_cholesky

// Elements of memory for factor_tile(): a block's inverse, and which of its rows failed.
constexpr int kFactorScratch = tile_cholesky::kBlock * tile_cholesky::kBlock + 1;
static_assert(kFactorScratch <= kStagingElements<float> &&
                  kFactorScratch <= kStagingElements<double>,
              "a product's staging has room for it");

// A = L Lᵀ of the lower triangle of A [d, d] in `tile` [kTile, kTileLeading], which the whole team
// sees. W = L⁻¹ takes A's place, and Lᵀ stands above its diagonal, whose inverses are L's. What
// stood above the diagonal is not read, and what stands in later rows is lost. `tile` and `scratch`
// are aligned; the latter has kFactorScratch elements.
//
// A pivot from -lift to 0 becomes `lift`: rounding took that much from it. Returns the first row
// whose pivot is below that or no finite number, or kNoFailedPivot, to all threads; after a failed
// pivot `tile` is of no use.
//
// It goes by blocks of 16 rows. One warp factors the block on the diagonal, which is a chain of as
// many roots; then the team makes the rest of the block's rows, of W up to the diagonal and of Lᵀ
// behind it. While the warp factors the next block, the others subtract these rows' multiples from
// all later ones, by which what remains of A and what there is of W go on alike.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE int factor_tile(const Team& team, int d, T lift, T* tile, T* scratch) {
  using namespace tile_cholesky;
  const int padded = (d + kBlock - 1) / kBlock * kBlock;
  T *inverse = scratch, *failed = scratch + kBlock * kBlock;
  pad(team, d, padded, tile);
  for (int first = 0; first < padded; first += kBlock) {
    team.by_first_warp([&](const auto& warp) {
      const int row = factor_block(warp, lift, first, tile);
      if (warp.rank() == 0) *failed = T(row);
    });
    if (first > 0) {
      update_rows(team, first - kBlock, padded, tile, inverse);
      store_inverse(team, first - kBlock, inverse, tile);
    }
    team.sync();
    if (*failed >= 0) return first + int(*failed);
    solve_rows(team, first, padded, tile, inverse);
    team.sync();
  }
  store_inverse(team, padded - kBlock, inverse, tile);
  team.sync();
  return kNoFailedPivot;
}

// Entry [i, c], c <= i, of L in a tile that factor_tile() has left.
template <typename T>
SOAP_FAST_HOST_DEVICE T factor_entry(const T* tile, int i, int c) {
  return c < i ? tile[c * kTileLeading<T> + i] : 1 / tile[i * kTileLeading<T> + i];
}

// receive(i, c, entry of P Wᵀ) for P [rows, d] in a tile and the lower triangle of W [d, d] in
// another, both aligned: with W = L⁻¹ it is X of X Lᵀ = P. Sums run in one order whatever the team:
// same bits.
template <typename T, typename Team, typename Receive>
SOAP_FAST_HOST_DEVICE void multiply_by_transposed_lower(const Team& team, int rows, int d,
                                                        const T* p, const T* w,
                                                        const Receive& receive) {
  constexpr int ld = kTileLeading<T>, kAtOnce = kAligned / int(sizeof(T));
  for (int place = team.rank(); place < kPlaces * kPlaces; place += team.size()) {
    const int top = place / kPlaces, left = place % kPlaces;
    const T *of_top = p + top * ld, *of_left = w + left * ld;
    T totals[kMicro<T>][kMicro<T>] = {};
    SOAP_FAST_UNROLL
    for (int block = 0; block < kMicro<T>; ++block) {  // kPlaces columns of both
      if (block * kPlaces >= d) break;
      SOAP_FAST_NO_UNROLL
      for (int within = 0; within < kPlaces; within += kAtOnce) {
        T of_p[kMicro<T>][kAtOnce], of_w[kAtOnce];
        for (int u = 0; u < kMicro<T>; ++u) load_aligned(of_top + kPlaces * u * ld, of_p[u]);
        SOAP_FAST_UNROLL
        for (int v = block; v < kMicro<T>; ++v) {  // W's columns end at its diagonal
          load_aligned(of_left + kPlaces * v * ld, of_w);
          for (int n = 0; n < kAtOnce; ++n) {
            if (v == block && n > left - within) continue;
            for (int u = 0; u < kMicro<T>; ++u) totals[u][v] += of_p[u][n] * of_w[n];
          }
        }
        of_top += kAtOnce;
        of_left += kAtOnce;
      }
    }
    for (int u = 0; u < kMicro<T>; ++u) {
      for (int v = 0; v < kMicro<T>; ++v) {
        const int i = top + kPlaces * u, c = left + kPlaces * v;
        if (i < rows && c < d) receive(i, c, totals[u][v]);
      }
    }
  }
}

}  // namespace soap_fast
