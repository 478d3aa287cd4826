// One small factor of eigh, from reading it to writing its basis, for one team.
#pragma once

#include "linalg/jacobi.h"
#include "linalg/scale.h"
#include "linalg/zero_rows.h"

namespace soap_fast {

// Largest d of this route on the GPU, where a team is a warp and its matrix lies in shared memory.
constexpr int kJacobiLargest = 32;

// Odd, so that neither rows nor columns of a matrix meet in one bank of shared memory.
SOAP_FAST_HOST_DEVICE constexpr int jacobi_ld(int d) { return d | 1; }

// Elements of memory for one factor.
SOAP_FAST_HOST_DEVICE constexpr int eigh_workspace(int d) {
  return 2 * d * jacobi_ld(d) + jacobi_rotations(d);
}

// max|K|, infinity if K is not finite. eigh reads the lower triangle alone, and so do we.
template <typename T, typename Team, typename Size>
SOAP_FAST_HOST_DEVICE T largest_of(const Team& team, Size d, const T* factor, int64_t row_stride,
                                   int64_t column_stride) {
  T largest = factor ? T(0) : Float<T>::infinity;
  for (int row = team.rank(); factor && row < d; row += team.size()) {
    for (int column = 0; column <= row; ++column) {
      const T magnitude = std::fabs(factor[row * row_stride + column * column_stride]);
      // Both comparisons are false for NaN, which thus becomes infinity.
      if (!(magnitude <= largest)) {
        largest = magnitude <= Float<T>::greatest ? magnitude : Float<T>::infinity;
      }
    }
  }
  return team.max(largest);
}

// eigenvalues [d] and basis [d, d], columns in their order, both contiguous and descending. No
// factor (nullptr) counts as one that is not finite. The workspace is the team's.
template <typename T, typename Team, typename Size>
SOAP_FAST_HOST_DEVICE void eigh_by_jacobi(const Team& team, Size d, const T* factor,
                                          int64_t row_stride, int64_t column_stride, T* workspace,
                                          T* eigenvalues, T* basis) {
  const int ld = jacobi_ld(d);
  T *a = workspace, *v = a + d * ld, *rotations = v + d * ld;
  const T scale = scale_for(largest_of(team, d, factor, row_stride, column_stride),
                            Float<T>::smallest_normal, Float<T>::greatest);
  bool solved = false;
  if (scale > 0) {
    for (int row = team.rank(); row < d; row += team.size()) {
      for (int column = 0; column <= row; ++column) {
        a[row * ld + column] = factor[row * row_stride + column * column_stride] * scale;
      }
    }
    team.sync();
    solved = jacobi_eigh(team, d, ld, a, v, rotations);
    team.sync();
  }
  if (!solved) {
    const T value = scale == T(kZeroFactor) ? T(0) : Float<T>::not_a_number;
    for (int i = team.rank(); i < d; i += team.size()) {
      eigenvalues[i] = value;
      for (int row = 0; row < d; ++row) basis[row * d + i] = T(row == i);
    }
    return;
  }
  // No rotation touches a zero row: its unit vector and its eigenvalue are exact, and come last.
  for (int i = team.rank(); i < d; i += team.size()) {
    T& value = a[i * ld + i];
    if (value == 0 && is_zero_row(int(d), factor, row_stride, column_stride, i)) {
      value = -Float<T>::infinity;
    }
  }
  team.sync();
  for (int i = team.rank(); i < d; i += team.size()) {
    const T value = a[i * ld + i];
    int place = 0;
    for (int j = 0; j < d; ++j) {
      const T other = a[j * ld + j];
      place += other > value || (other == value && j < i);
    }
    eigenvalues[place] = value == -Float<T>::infinity ? T(0) : value / scale;
    for (int row = 0; row < d; ++row) basis[row * d + place] = v[i * ld + row];
  }
}

}  // namespace soap_fast
