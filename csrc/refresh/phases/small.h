// A refresh of small factors by the Householder QR of K Q: one of them from its products to its new
// basis, for one team, and the one phase of their refresh, a warp for each.
//
// The Cholesky route is not for them: rank-1 factors of size 3 to 9 can lose a pivot to rounding.
#pragma once

#include "linalg/householder.h"
#include "linalg/zero_rows.h"
#include "refresh/phases/outcome.h"
#include "refresh/phases/table.h"

namespace soap_fast {

// Elements of memory for one factor: K Q, its sorted columns, the eigenvalues, the places of rows.
SOAP_FAST_HOST_DEVICE constexpr int refresh_workspace(int d) { return 2 * d * d + 2 * d; }

namespace refresh_small {

// Off-diagonal and whole sum of squares of H = QᵀKQ under `scale`; its diagonal to `eigenvalues`.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void measure(const Team& team, int d, const T* q, const T* kq, T scale,
                                   T* eigenvalues, T& off, T& all) {
  T off_here = 0, all_here = 0;
  for (int j = team.rank(); j < d; j += team.size()) {
    for (int i = 0; i < d; ++i) {
      T entry = 0;
      for (int k = 0; k < d; ++k) entry += q[k * d + i] * (kq[k * d + j] * scale);
      all_here += entry * entry;
      if (i == j) {
        eigenvalues[j] = entry;
      } else {
        off_here += entry * entry;
      }
    }
  }
  off = team.sum(off_here);
  all = team.sum(all_here);
  team.sync();
}

// Q of the QR of the first n columns of `sorted` [d, d] without its zero rows; then the whole basis
// in its place.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void orthogonalise(const Team& team, int d, int n, const T* places,
                                         T* sorted) {
  if (n < d) {
    for (int column = team.rank(); column < n; column += team.size()) {
      for (int row = 0; row < d; ++row) {  // a row's place is not behind it
        const int place = int(places[row]);
        if (place < n) sorted[place * d + column] = sorted[row * d + column];
      }
    }
    team.sync();
  }
  householder_q(team, n, d, sorted);
  for (int column = team.rank(); n < d && column < d; column += team.size()) {
    for (int row = d - 1; row >= 0; --row) {
      sorted[row * d + column] = with_unit_vectors(sorted, d, n, places, row, column);
    }
  }
  team.sync();
}

}  // namespace refresh_small

// factor [d, d] symmetric, basis [d, d] orthogonal and changed in place, order [d], carry [d, d];
// all row-major, but for a carry that is `turned`, and seen by the whole team. What it returns and
// writes is defined in soap_fast/step/refresh.py; where the basis stays, order and carry are left
// to the caller.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE Outcome refresh_by_householder(const Team& team, int d, const T* factor,
                                                     T* basis, T tolerance, T* workspace,
                                                     int64_t* order, T* carry, bool turned,
                                                     T* off_diagonal) {
  T *kq = workspace, *sorted = kq + d * d, *eigenvalues = sorted + d * d;
  T* places = eigenvalues + d;
  T largest = 0;
  for (int column = team.rank(); column < d; column += team.size()) {
    for (int row = 0; row < d; ++row) {
      T entry = 0;
      for (int k = 0; k < d; ++k) entry += factor[row * d + k] * basis[k * d + column];
      kq[row * d + column] = entry;
      const T magnitude = std::fabs(entry);
      // Both comparisons are false for NaN, which thus becomes infinity.
      if (!(magnitude <= largest)) {
        largest = magnitude <= Float<T>::greatest ? magnitude : Float<T>::infinity;
      }
    }
  }
  largest = team.max(largest);
  team.sync();
  const T scale = scale_for(largest, Float<T>::smallest_normal, Float<T>::greatest);
  if (scale == T(kNonFiniteFactor)) return Outcome::kFailed;
  if (scale == T(kZeroFactor)) {
    if (team.rank() == 0) *off_diagonal = 0;
    return Outcome::kKept;
  }
  T off, all;
  refresh_small::measure(team, d, basis, kq, scale, eigenvalues, off, all);
  const T share = std::sqrt(off / all);
  if (team.rank() == 0) *off_diagonal = share;
  if (tolerance > 0 && share <= tolerance) return Outcome::kKept;

  const int n = place_rows(team, d, factor, d, 1, places);
  for (int j = team.rank(); n < d && j < d; j += team.size()) {
    if (is_in_zero_rows(d, basis, j, n, places)) eigenvalues[j] = -Float<T>::infinity;
  }
  team.sync();
  for (int j = team.rank(); j < d; j += team.size()) {
    int place = 0;
    for (int k = 0; k < d; ++k) {
      place += eigenvalues[k] > eigenvalues[j] || (eigenvalues[k] == eigenvalues[j] && k < j);
    }
    order[place] = j;
    for (int row = 0; row < d; ++row) sorted[row * d + place] = kq[row * d + j];
  }
  team.sync();
  refresh_small::orthogonalise(team, d, n, places, sorted);
  for (int column = team.rank(); column < d; column += team.size()) {
    for (int row = 0; row < d; ++row) {
      T entry = 0;
      for (int k = 0; k < d; ++k) entry += basis[k * d + row] * sorted[k * d + column];
      carry[turned ? column * d + row : row * d + column] = entry;
    }
  }
  team.sync();
  for (int e = team.rank(); e < d * d; e += team.size()) basis[e] = sorted[e];
  team.sync();
  return Outcome::kRefreshed;
}

// A lane per column; the workspace of a warp lies in shared memory.
constexpr int kHouseholderUpTo = 32;

struct RefreshSmall {
  static constexpr bool kByWarp = true;
  SOAP_FAST_HOST_DEVICE static int parts(int, RefreshCall) { return 1; }

  // `scratch` holds refresh_workspace(d).
  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i, int,
                                        RefreshCall, double tolerance, T* scratch) {
    const int d = stack.size;
    const int64_t place = stack.place(i);
    T* carry = stack.carry(i);
    if (team.rank() == 0) stack.off_diagonals[i] = Float<T>::not_a_number;
    team.sync();
    Outcome outcome = !stack.allowed[i] ? Outcome::kLeftOut : Outcome::kFailed;
    if (stack.allowed[i] && place >= 0) {
      outcome = refresh_by_householder(
          team, d, stack.factors + place * d * d, stack.bases + place * d * d, T(tolerance),
          scratch, stack.order(i), carry, stack.turned, stack.off_diagonals + i);
    }
    if (team.rank() == 0) stack.decide(i, outcome);
    if (outcome == Outcome::kRefreshed) return;
    for (int e = team.rank(); e < d * d; e += team.size()) carry[e] = T(e % d == e / d);
    for (int j = team.rank(); j < d; j += team.size()) stack.order(i)[j] = j;
  }
};

}  // namespace soap_fast
