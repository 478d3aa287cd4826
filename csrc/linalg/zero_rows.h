// Rows and columns of a factor that are exactly zero: no solver sees them, and the basis has their
// unit vectors. soap_fast/step/eigh.py and soap_fast/step/refresh.py say where. Sizes are int in
// kernels of small factors, where int64_t costs registers.
#pragma once

#include "linalg/team.h"

namespace soap_fast {

// Whether row and column i of a symmetric K are exactly zero, by its lower triangle. The diagonal
// alone may be: squares of small numbers are zero where products with larger ones are not.
template <typename T, typename Size, typename Stride>
SOAP_FAST_HOST_DEVICE bool is_zero_row(Size d, const T* factor, Stride row_stride,
                                       Stride column_stride, Size i) {
  if (factor[i * row_stride + i * column_stride] != 0) return false;
  for (Size j = 0; j < i; ++j) {
    if (factor[i * row_stride + j * column_stride] != 0) return false;
  }
  for (Size j = i + 1; j < d; ++j) {
    if (factor[j * row_stride + i * column_stride] != 0) return false;
  }
  return true;
}

// places [d], seen by the whole team, hold 1 for zero rows and 0 for others: they become 0, 1, ..,
// n - 1 for the others in their order and n, .., d - 1 for zero rows. Returns n to all threads.
template <typename Team, typename Size, typename Place>
SOAP_FAST_HOST_DEVICE Size number_rows(const Team& team, Size d, Place* places) {
  float zeros = 0;  // exact up to 2^24
  for (Size i = team.rank(); i < d; i += team.size()) zeros += places[i] != 0;
  const Size n = d - Size(team.sum(zeros));
  team.sync();
  if (n == d) {
    for (Size i = team.rank(); i < d; i += team.size()) places[i] = Place(i);
  } else if (team.rank() == 0) {
    Size next = 0, next_zero = n;
    for (Size i = 0; i < d; ++i) places[i] = Place(places[i] == 0 ? next++ : next_zero++);
  }
  team.sync();
  return n;
}

// The same for a factor. Places may be of any type that holds d.
template <typename T, typename Team, typename Size, typename Stride, typename Place>
SOAP_FAST_HOST_DEVICE Size place_rows(const Team& team, Size d, const T* factor, Stride row_stride,
                                      Stride column_stride, Place* places) {
  for (Size i = team.rank(); i < d; i += team.size()) {
    places[i] = Place(is_zero_row(d, factor, row_stride, column_stride, i));
  }
  return number_rows(team, d, places);  // each thread counts what it has written
}

// Whether a column of a basis [d, d], row-major, vanishes in all rows that are not zero: what K
// makes of it is zero and no rounding.
template <typename T, typename Size, typename Place>
SOAP_FAST_HOST_DEVICE bool is_in_zero_rows(Size d, const T* basis, Size column, Size n,
                                           const Place* places) {
  for (Size row = 0; row < d; ++row) {
    if (places[row] < Place(n) && basis[row * d + column] != 0) return false;
  }
  return true;
}

// Entry [row, column] of a basis whose rows that are not zero hold the small basis [n, n] with
// leading dimension ld.
template <typename T, typename Size, typename Place>
SOAP_FAST_HOST_DEVICE T with_unit_vectors(const T* small, Size ld, Size n, const Place* places,
                                          Size row, Size column) {
  const Size place = Size(places[row]);
  if (place < n && column < n) return small[place * ld + column];
  return T(place >= n && place == column);
}

}  // namespace soap_fast
