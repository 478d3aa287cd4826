// The last phases of a refresh by Cholesky: make X orthogonal to rounding, judge it, hand it over.
//
// With E = I - XᵀX, X (I + E/2 + 3/8 E²) is orthogonal but for 5/16 E³. One Newton-Schulz step,
// X (I + E/2), would leave 3/4 E²: with factors of rank d/3 and a basis far from them E reaches
// 0.017, and 1.4e-5 was left.
#pragma once

#include <cmath>

#include "linalg/turn_tile.h"
#include "refresh/phases/table.h"

namespace soap_fast {

// |E|_inf up to which a new basis is taken: 5/16 of its cube is 8.4e-6, below the 1e-5 allowed.
constexpr double kMostResidual = 0.03;

// Of D = XᵀX - I = -E: D/2 and sqrt(3/8) D. The former without the square of the latter is
// -(E/2 + 3/8 E²). And the transpose of Q as it was, where zero rows were set apart in it.
struct ResidualRow {
  static constexpr bool kByWarp = true;
  SOAP_FAST_HOST_DEVICE static int parts(int d, RefreshCall) { return d; }

  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i,
                                        int row, RefreshCall, double, T*) {
    if (!stack.alive(i)) return;
    const int d = stack.d;
    const int64_t at = int64_t(row) * d;
    const T root = T(0.6123724356957945);  // of 3/8
    T* gram = stack.matrix(Slot::kRotated, i) + at;
    T* scaled = stack.matrix(Slot::kCarry, i) + at;
    double absolute = 0;
    for (int column = team.rank(); column < d; column += team.size()) {
      const T entry = gram[column] - T(column == row);
      scaled[column] = root * entry;
      gram[column] = entry / 2;
      absolute += std::fabs(double(entry));
    }
    absolute = team.sum(absolute);
    if (team.rank() == 0) stack.of_rows(OfRow::kAbsolute, i)[row] = absolute;
    if (int(stack.of_factor(OfFactor::kRows, i)) == d) return;
    const int size = stack.size;
    const T* q = stack.basis(i) + row;
    T* target = stack.matrix(Slot::kBasis, i) + at;
    for (int column = team.rank(); column < d; column += team.size()) {
      const bool is_there = row < size && column < size;
      target[column] = is_there ? q[int64_t(column) * size] : T(column == row);
    }
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

// The new basis to its place, the ones of its unit vectors exact, its order, and the carrying
// matrix if that is not there yet; the identity as order and carry where the old one stays. A tile
// of rows.
template <typename T>
struct CommitRows {
  static constexpr bool kByWarp = false;
  SOAP_FAST_HOST_DEVICE static int parts(int d, RefreshCall) { return tiles_of(d, kTile<T>); }

  template <typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i,
                                        int tile, RefreshCall, double, T* scratch) {
    const int size = stack.size, d = stack.d, top = tile * kTile<T>;
    const int rows = size - top < kTile<T> ? size - top : kTile<T>;
    const bool changes = stack.in_stage(i, Outcome::kRefreshed);
    for (int row = top + team.rank(); row < top + rows; row += team.size()) {
      stack.order(i)[row] = changes ? stack.sorted(i)[row] : row;
    }
    const T* carry = stack.matrix(Slot::kCarry, i);
    for (int row = top; row < top + rows && !(changes && d == size); ++row) {
      for (int column = team.rank(); column < size; column += team.size()) {
        stack.carry(i)[int64_t(row) * size + column] =
            changes ? carry[int64_t(row) * d + column] : T(column == row);
      }
    }
    if (!changes) return;
    const T* x = stack.matrix(Slot::kFactor, i) + top;
    T* basis = stack.basis(i) + int64_t(top) * size;
    const double* places = stack.of_rows(OfRow::kPlace, i) + top;
    const int n = int(stack.of_factor(OfFactor::kRows, i));
    for (int left = 0; left < size; left += kTile<T>) {
      turn_tile(
          team, size - left < kTile<T> ? size - left : kTile<T>, rows, scratch,
          [&](int column, int row) { return x[int64_t(left + column) * d + row]; },
          [&](int row, int column, T entry) {
            const int place = int(places[row]);
            basis[int64_t(row) * size + left + column] =
                place >= n ? T(left + column == place) : entry;
          });
    }
  }
};

}  // namespace soap_fast
