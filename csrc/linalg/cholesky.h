// Cholesky factor of a symmetric matrix, and solves with it, for one team.
#pragma once

#include <cmath>

#include "linalg/team.h"

namespace soap_fast {

// c -= p qᵀ for c [rows, columns], p [rows, depth], q [columns, depth], all row-major. `lower`:
// only where column <= row. Entries are independent, so that any tiling gives the same bits.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void subtract_product(const Team& team, int64_t rows, int64_t columns,
                                            int64_t depth, const T* p, int64_t ldp, const T* q,
                                            int64_t ldq, T* c, int64_t ldc, bool lower) {
  for (int64_t e = team.rank(); e < rows * columns; e += team.size()) {
    const int64_t row = e / columns, column = e % columns;
    if (lower && column > row) continue;
    T total = 0;
    for (int64_t k = 0; k < depth; ++k) total += p[row * ldp + k] * q[column * ldq + k];
    c[row * ldc + column] -= total;
  }
  team.sync();
}

// X Lᵀ = B in place of B [rows, d]; L [d, d] lower, its upper triangle is not read, its diagonal
// not zero. Rows are independent: a thread has whole ones, and a grid may split them.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void solve_right_transposed_block(const Team& team, int64_t rows, int64_t d,
                                                        const T* l, int64_t ldl, T* b,
                                                        int64_t ldb) {
  for (int64_t row = team.rank(); row < rows; row += team.size()) {
    T* x = b + row * ldb;
    for (int64_t column = 0; column < d; ++column) {
      T total = x[column];
      for (int64_t k = 0; k < column; ++k) total -= x[k] * l[column * ldl + k];
      x[column] = total / l[column * ldl + column];
    }
  }
  team.sync();
}

// Columns of L that are eliminated together.
constexpr int64_t kTriangularBlock = 32;

// The same for any d, in blocks of columns: nearly all of the work is then subtract_product.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void solve_right_transposed(const Team& team, int64_t rows, int64_t d,
                                                  const T* l, int64_t ldl, T* b, int64_t ldb) {
  for (int64_t first = 0; first < d; first += kTriangularBlock) {
    const int64_t width = d - first < kTriangularBlock ? d - first : kTriangularBlock;
    const T* l_rows = l + first * ldl;
    subtract_product(team, rows, width, first, b, ldb, l_rows, ldl, b + first, ldb, false);
    solve_right_transposed_block(team, rows, width, l_rows + first, ldl, b + first, ldb);
  }
}

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
