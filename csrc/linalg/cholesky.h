// Cholesky factor of a symmetric matrix, for one team.
#pragma once

#include <cmath>

#include "linalg/triangular.h"

namespace soap_fast {

constexpr int64_t kNoFailedPivot = -1;

// A diagonal block, column by column. What it returns is as for cholesky.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE int64_t cholesky_block(const Team& team, int64_t d, T* a, int64_t ld) {
  for (int64_t j = 0; j < d; ++j) {
    const T pivot = a[j * ld + j];
    if (!(pivot > 0 && pivot <= Float<T>::greatest)) return j;  // for NaN too
    const T root = std::sqrt(pivot);
    team.sync();  // all have read the pivot
    if (team.rank() == 0) a[j * ld + j] = root;
    for (int64_t i = j + 1 + team.rank(); i < d; i += team.size()) a[i * ld + j] /= root;
    team.sync();
    const int64_t left = d - j - 1;
    T* column = a + (j + 1) * ld + j;  // [left, 1]
    subtract_product(team, left, left, 1, column, ld, column, ld, column + 1, ld, true);
  }
  return kNoFailedPivot;
}

// A = L Lᵀ, L in place of the lower triangle of a [d, ld], which the whole team sees; what stands
// above the diagonal is neither read nor written. Returns the first row whose pivot is not a
// positive number, or kNoFailedPivot, to all threads; after a failed pivot `a` is of no use.
//
// In blocks of columns: diagonal block, the rows below it, then all that remains minus their
// product. The last is nearly all of the work and may be spread over many teams by tiles.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE int64_t cholesky(const Team& team, int64_t d, T* a, int64_t ld) {
  for (int64_t first = 0; first < d; first += kTriangularBlock) {
    const int64_t width = d - first < kTriangularBlock ? d - first : kTriangularBlock;
    const int64_t next = first + width, left = d - next;
    T* block = a + first * ld + first;
    const int64_t failed = cholesky_block(team, width, block, ld);
    if (failed != kNoFailedPivot) return first + failed;
    T* below = a + next * ld + first;  // [left, width]
    solve_right_transposed_block(team, left, width, block, ld, below, ld);
    subtract_product(team, left, left, width, below, ld, below, ld, a + next * ld + next, ld, true);
  }
  return kNoFailedPivot;
}

}  // namespace soap_fast
