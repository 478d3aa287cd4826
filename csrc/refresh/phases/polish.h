// The last phases of a refresh by Cholesky: make X orthogonal to rounding, judge it, hand it over.
//
// With E = I - XᵀX, X (I + E/2 + 3/8 E²) is orthogonal but for 5/16 E³. One Newton-Schulz step,
// X (I + E/2), would leave 3/4 E²: with factors of rank d/3 and a basis far from them E reaches
// 0.017, and 1.4e-5 was left.
#pragma once

#include <cmath>

#include "refresh/phases/table.h"

namespace soap_fast {

// |E|_inf up to which a new basis is taken: 5/16 of its cube is 8.4e-6, below the 1e-5 allowed.
constexpr double kMostResidual = 0.03;

// E and F = I/2 + 3/8 E from XᵀX: X + X E F is what is wanted.
struct ResidualRow {
  static constexpr bool kByWarp = true;
  SOAP_FAST_HOST_DEVICE static int parts(int d, RefreshCall) { return d; }

  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i,
                                        int row, RefreshCall, double, T*) {
    if (!stack.alive(i)) return;
    const int64_t at = int64_t(row) * stack.d;
    const T* gram = stack.matrix(Slot::kRotated, i) + at;
    T* e = stack.matrix(Slot::kFactor, i) + at;
    T* f = stack.matrix(Slot::kProduct, i) + at;
    double absolute = 0;
    for (int column = team.rank(); column < stack.d; column += team.size()) {
      const T one = T(column == row);
      e[column] = one - gram[column];
      f[column] = one / 2 + T(0.375) * e[column];
      absolute += std::fabs(double(e[column]));
    }
    absolute = team.sum(absolute);
    if (team.rank() == 0) stack.of_rows(OfRow::kAbsolute, i)[row] = absolute;
  }
};

struct Judge {
  static constexpr bool kByWarp = false;
  SOAP_FAST_HOST_DEVICE static int parts(int, RefreshCall) { return 1; }

  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i, int,
                                        RefreshCall, double, T*) {
    if (!stack.alive(i)) return;
    const double* absolute = stack.of_rows(OfRow::kAbsolute, i);
    double worst = 0;
    for (int row = team.rank(); row < stack.d; row += team.size()) {
      // Both comparisons are false for NaN, which thus becomes infinity.
      if (!(absolute[row] <= worst)) {
        worst = absolute[row] > worst ? absolute[row] : Float<double>::infinity;
      }
    }
    worst = team.max(worst);
    team.sync();  // all know that it was alive
    if (team.rank() != 0) return;
    stack.decide(i, worst <= kMostResidual ? Outcome::kRefreshed : Outcome::kFailed);
  }
};

// X + X E F; and Q as it was, for the carrying matrix.
struct AddCorrectionRow {
  static constexpr bool kByWarp = true;
  SOAP_FAST_HOST_DEVICE static int parts(int d, RefreshCall) { return d; }

  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i,
                                        int row, RefreshCall, double, T*) {
    if (!stack.in_stage(i, Outcome::kRefreshed)) return;
    const int64_t at = int64_t(row) * stack.d;
    const T* correction = stack.matrix(Slot::kFactor, i) + at;
    T* x = stack.matrix(Slot::kResult, i) + at;
    for (int column = team.rank(); column < stack.d; column += team.size()) {
      x[column] += correction[column];
    }
    if (stack.of_factor(OfFactor::kRows, i) == stack.d) return;
    const T* q = stack.bases + stack.place(i) * stack.d * stack.d + at;
    T* target = stack.matrix(Slot::kBasis, i) + at;
    for (int column = team.rank(); column < stack.d; column += team.size()) {
      target[column] = q[column];
    }
  }
};

// The new basis to its place, the ones of its unit vectors exact; the identity as order and carry
// where the old one stays.
struct CommitRow {
  static constexpr bool kByWarp = true;
  SOAP_FAST_HOST_DEVICE static int parts(int d, RefreshCall) { return d; }

  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i,
                                        int row, RefreshCall, double, T*) {
    const int d = stack.d;
    if (stack.in_stage(i, Outcome::kRefreshed)) {
      const T* x = stack.matrix(Slot::kResult, i) + int64_t(row) * d;
      T* basis = stack.bases + (stack.place(i) * d + row) * d;
      const int place = int(stack.of_rows(OfRow::kPlace, i)[row]);
      const bool zero_row = place >= int(stack.of_factor(OfFactor::kRows, i));
      for (int column = team.rank(); column < d; column += team.size()) {
        basis[column] = zero_row ? T(column == place) : x[column];
      }
      return;
    }
    T* carry = stack.carries + (int64_t(i) * d + row) * d;
    for (int column = team.rank(); column < d; column += team.size()) {
      carry[column] = T(column == row);
    }
    if (team.rank() == 0) stack.order(i)[row] = row;
  }
};

}  // namespace soap_fast
