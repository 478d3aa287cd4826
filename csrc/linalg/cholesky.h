// Cholesky factor of a tile and its inverse, in the place of each other, and products with the
// latter, for one team.
#pragma once

#include <cmath>

#include "linalg/tile_product.h"

namespace soap_fast {

constexpr int kNoFailedPivot = -1;

namespace tile_cholesky {

// What the other threads need for step j: row j up to its diagonal, then column j below it.
template <typename T>
SOAP_FAST_HOST_DEVICE void publish(const T (&mine)[kMicro<T>][kMicro<T>], int top, int left, int j,
                                   T* row) {
  if (top == j % kPlaces) {
    for (int u = 0; u < kMicro<T>; ++u) {
      for (int v = 0; v < kMicro<T>; ++v) {
        const int c = left + kPlaces * v;
        if (top + kPlaces * u == j && c <= j) row[c] = mine[u][v];
      }
    }
  }
  if (left == j % kPlaces) {
    for (int u = 0; u < kMicro<T>; ++u) {
      for (int v = 0; v < kMicro<T>; ++v) {
        const int i = top + kPlaces * u;
        if (left + kPlaces * v == j && i > j) row[i] = mine[u][v];
      }
    }
  }
}

// Row j becomes `row` times `inverse`, and each later one loses its multiple of that. Above the
// diagonal this leaves nothing of meaning until an entry's own row has its turn.
template <typename T>
SOAP_FAST_HOST_DEVICE void eliminate(T (&mine)[kMicro<T>][kMicro<T>], int top, int left, int j,
                                     T inverse, const T* row) {
  T of_row[kMicro<T>], of_column[kMicro<T>];
  for (int u = 0; u < kMicro<T>; ++u) {
    const int i = top + kPlaces * u, c = left + kPlaces * u;
    of_row[u] = i > j ? row[i] * inverse : T(0);
    of_column[u] = c == j ? inverse : row[c] * inverse;
  }
  if (left == j % kPlaces) {  // column j has gone into `row`
    for (int u = 0; u < kMicro<T>; ++u) {
      for (int v = 0; v < kMicro<T>; ++v) {
        if (left + kPlaces * v == j && top + kPlaces * u > j) mine[u][v] = 0;
      }
    }
  }
  for (int u = 0; u < kMicro<T>; ++u) {
    for (int v = 0; v < kMicro<T>; ++v) mine[u][v] -= of_row[u] * of_column[v];
  }
  if (top == j % kPlaces) {
    for (int u = 0; u < kMicro<T>; ++u) {
      for (int v = 0; v < kMicro<T>; ++v) {
        if (top + kPlaces * u == j) mine[u][v] = of_column[v];
      }
    }
  }
}

}  // namespace tile_cholesky

// A = L Lᵀ of the lower triangle of A [d, d] in `tile` [kTile, kTileLeading], which the whole team
// sees. W = L⁻¹ takes A's place, and Lᵀ stands above its diagonal, whose inverses are L's. What
// stood above the diagonal is not read. `rows` is memory for 2 kTile entries.
//
// A pivot from -lift to 0 becomes `lift`: rounding took that much from it. Returns the first row
// whose pivot is below that or no finite number, or kNoFailedPivot, to all threads; after a failed
// pivot `tile` is of no use.
//
// Step j makes row j: of W up to its diagonal, then column j of L. Each later row subtracts its
// multiple of it, by which what remains of A and what there is of W go on alike. Threads keep their
// entries in registers and hand each other the row alone; two of them in turn, so that a step has
// one sync().
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE int factor_tile(const Team& team, int d, T lift, T* tile, T* rows) {
  constexpr int kAllPlaces = kPlaces * kPlaces;
  constexpr int kPerThread = (kAllPlaces + Team::kLeastSize - 1) / Team::kLeastSize;
  T entries[kPerThread][kMicro<T>][kMicro<T>];
  // visit(entries of a place, its first row, its first column): the others are kPlaces apart.
  const auto visit_mine = [&](const auto& visit) {
    for (int n = 0; n < kPerThread; ++n) {
      const int place = team.rank() + n * team.size();
      if (place < kAllPlaces) visit(entries[n], place / kPlaces, place % kPlaces);
    }
  };
  visit_mine([&](auto& mine, int top, int left) {
    for (int u = 0; u < kMicro<T>; ++u) {
      for (int v = 0; v < kMicro<T>; ++v) {
        const int i = top + kPlaces * u, c = left + kPlaces * v;
        mine[u][v] = c <= i && i < d ? tile[i * kTileLeading<T> + c] : T(0);
      }
    }
  });
  for (int j = 0; j < d; ++j) {
    T* row = rows + j % 2 * kTile<T>;
    visit_mine(
        [&](auto& mine, int top, int left) { tile_cholesky::publish(mine, top, left, j, row); });
    team.sync();
    T pivot = row[j];
    if (!(pivot > 0) && pivot >= -lift) pivot = lift;
    if (!(pivot > 0 && pivot <= Float<T>::greatest)) return j;  // for NaN too
    const T inverse = 1 / std::sqrt(pivot);
    visit_mine([&](auto& mine, int top, int left) {
      tile_cholesky::eliminate(mine, top, left, j, inverse, row);
    });
  }
  visit_mine([&](const auto& mine, int top, int left) {
    for (int u = 0; u < kMicro<T>; ++u) {
      for (int v = 0; v < kMicro<T>; ++v) {
        const int i = top + kPlaces * u, c = left + kPlaces * v;
        if (i < d && c < d) tile[i * kTileLeading<T> + c] = mine[u][v];
      }
    }
  });
  team.sync();
  return kNoFailedPivot;
}

// Entry [i, c], c <= i, of L in a tile that factor_tile() has left.
template <typename T>
SOAP_FAST_HOST_DEVICE T factor_entry(const T* tile, int i, int c) {
  return c < i ? tile[c * kTileLeading<T> + i] : 1 / tile[i * kTileLeading<T> + i];
}

// receive(i, c, entry of P Wᵀ) for P [rows, d] in a tile and the lower triangle of W [d, d] in
// another: with W = L⁻¹ it is X of X Lᵀ = P. Sums run in one order whatever the team: same bits.
template <typename T, typename Team, typename Receive>
SOAP_FAST_HOST_DEVICE void multiply_by_transposed_lower(const Team& team, int rows, int d,
                                                        const T* p, const T* w,
                                                        const Receive& receive) {
  for (int place = team.rank(); place < kPlaces * kPlaces; place += team.size()) {
    const int top = place / kPlaces, left = place % kPlaces;
    T totals[kMicro<T>][kMicro<T>] = {};
    for (int k = 0; k < d; ++k) {
      T of_p[kMicro<T>], of_w[kMicro<T>];
      for (int u = 0; u < kMicro<T>; ++u) {
        const int i = top + kPlaces * u, c = left + kPlaces * u;
        of_p[u] = i < rows ? p[i * kTileLeading<T> + k] : T(0);
        of_w[u] = k <= c && c < d ? w[c * kTileLeading<T> + k] : T(0);
      }
      for (int u = 0; u < kMicro<T>; ++u) {
        for (int v = 0; v < kMicro<T>; ++v) totals[u][v] += of_p[u] * of_w[v];
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
