// What a library's solver is given of a factor, and what is made of its answer, entry by entry.
//
// Zero rows and columns stay in the matrix, with -1 on the diagonal where K has 0: K is positive
// semidefinite and its largest entry has been scaled to between 1/2 and 1, so that no eigenvalue of
// the rest is near, and the solver's first pairs are theirs. What it has mixed into them by
// rounding is left behind.
#pragma once

#include "linalg/scale.h"
#include "linalg/zero_rows.h"

namespace soap_fast {

// Entry [row, column] of what is solved: the lower triangle, scaled, and zeros above it; the
// identity where the scale is a mark. `places` and n are of place_rows().
template <typename T, typename Place>
SOAP_FAST_HOST_DEVICE T packed_entry(const T* factor, int64_t row_stride, int64_t column_stride,
                                     T scale, const Place* places, int64_t n, int64_t row,
                                     int64_t column) {
  if (scale <= 0) return T(column == row);
  if (column > row) return 0;
  if (column == row && places[row] >= Place(n)) return -1;
  return factor[row * row_stride + column * column_stride] * scale;
}

// Entry [row, column] of the basis, whose columns are descending, from `vectors` with a column for
// each of the ascending eigenvalues.
template <typename T, typename Place>
SOAP_FAST_HOST_DEVICE T basis_entry(const T* vectors, int64_t row_stride, int64_t column_stride,
                                    int64_t d, const Place* places, int64_t n, int64_t row,
                                    int64_t column) {
  const int64_t place = int64_t(places[row]);
  if (place >= n || column >= n) return T(place >= n && place == column);
  return vectors[row * row_stride + (d - 1 - column) * column_stride];
}

// Eigenvalue number `column`, descending, from the solver's.
template <typename T>
SOAP_FAST_HOST_DEVICE T eigenvalue_of(const T* ascending, T scale, int64_t d, int64_t n,
                                      int64_t column) {
  return column < n ? ascending[d - 1 - column] / scale : T(0);
}

}  // namespace soap_fast
