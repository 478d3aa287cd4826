// The phase of a refresh by Cholesky that keeps zero rows of K apart: their unit vectors are
// columns of the basis from here on, so that H and all that is made of it is zero beside its
// diagonal there.
//
// A basis that was made so has them already, and nothing is computed. In one that mixes a zero row
// with others (of an old checkpoint, or of a row that has died out) a Householder reflection of its
// columns turns that row into a unit vector: the span of the columns is the same.
#pragma once

#include <cmath>

#include "linalg/zero_rows.h"
#include "refresh/phases/table.h"

namespace soap_fast {

struct SetApart {
  static constexpr bool kByWarp = false;
  SOAP_FAST_HOST_DEVICE static int parts(int, RefreshCall) { return 1; }

  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i, int,
                                        RefreshCall, double, T*) {
    const int d = stack.d;
    double *places = stack.of_rows(OfRow::kPlace, i), *unit = stack.of_rows(OfRow::kUnit, i);
    for (int j = team.rank(); j < d; j += team.size()) unit[j] = kNoUnit;
    int n = place_rows(team, d, stack.matrix(Slot::kFactor, i), d, 1, places);
    if (n == 0 || !stack.allowed[i] || stack.place(i) < 0) n = d;  // nothing of it will change
    if (team.rank() == 0) stack.of_factor(OfFactor::kRows, i) = n;
    T* q = stack.matrix(Slot::kBasis, i);
    for (int row = 0; n < d && row < d; ++row) {
      if (int(places[row]) < n) continue;
      const int column = largest_of_row(team, d, q, row, unit);
      reflect(team, d, q, row, column);
      team.sync();
      for (int e = team.rank(); e < d; e += team.size()) {
        q[int64_t(column) * d + e] = T(e == row);
        if (e != column) q[int64_t(e) * d + row] = 0;
      }
      if (team.rank() == 0) unit[column] = places[row];
      team.sync();
    }
  }

 private:
  // Entry [row, column] of Q is q[column * d + row]: its transpose lies by rows.

  // The column of the largest entry of a row, among those that are no unit vectors; there is always
  // one, in a basis that is not finite too.
  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static int largest_of_row(const Team& team, int d, const T* q, int row,
                                                  const double* unit) {
    double largest = 0, first = 0;
    for (int j = team.rank(); j < d; j += team.size()) {
      const double magnitude = std::fabs(double(q[int64_t(j) * d + row]));
      if (unit[j] == kNoUnit && magnitude > largest) largest = magnitude;
    }
    largest = team.max(largest);
    for (int j = team.rank(); j < d; j += team.size()) {
      const bool is_it =
          unit[j] == kNoUnit && !(std::fabs(double(q[int64_t(j) * d + row])) < largest);
      if (is_it && double(d - j) > first) first = d - j;
    }
    return d - int(team.max(first));
  }

  // q (I - tau v vᵀ) for the other rows, with v such that `row` would have `column` alone.
  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void reflect(const Team& team, int d, T* q, int row, int column) {
    double squares = 0;
    for (int j = team.rank(); j < d; j += team.size()) {
      const double entry = q[int64_t(j) * d + row];
      if (j != column) squares += entry * entry;
    }
    squares = team.sum(squares);
    if (squares == 0) return;  // to all threads alike
    const double head = q[int64_t(column) * d + row], norm = std::sqrt(head * head + squares);
    const double beta = head >= 0 ? -norm : norm, tau = (beta - head) / beta;
    const T inverse = T(1 / (head - beta));
    for (int other = team.rank(); other < d; other += team.size()) {
      if (other == row) continue;
      const auto v = [&](int j) { return j == column ? T(1) : q[int64_t(j) * d + row] * inverse; };
      T along = 0;
      for (int j = 0; j < d; ++j) along += q[int64_t(j) * d + other] * v(j);
      along *= T(tau);
      for (int j = 0; j < d; ++j) q[int64_t(j) * d + other] -= along * v(j);
    }
  }
};

}  // namespace soap_fast
