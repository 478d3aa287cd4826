// The first phases of a refresh by Cholesky: gather K and Q, look at H = QᵀKQ, decide, sort.
#pragma once

#include <cmath>

#include "linalg/turn_tile.h"
#include "refresh/phases/table.h"

namespace soap_fast {

// K of the selected factors side by side, as batched products want them, and the transpose of Q; a
// tile of rows of both. Beyond their size K has zeros and Q unit vectors.
template <typename T>
struct GatherRows {
  static constexpr bool kByWarp = false;
  SOAP_FAST_HOST_DEVICE static int parts(int d, RefreshCall) { return tiles_of(d, kTile<T>); }

  template <typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i,
                                        int tile, RefreshCall, double, T* scratch) {
    const int d = stack.d, top = tile * kTile<T>;
    const int rows = d - top < kTile<T> ? d - top : kTile<T>;
    const int size = stack.size;
    const int64_t place = stack.place(i), entries = int64_t(size) * size;
    const int64_t of_factor = place * entries + int64_t(top) * size;
    const int64_t of_basis = stack.basis_place(i) * entries + int64_t(top) * size;
    T* k = stack.matrix(Slot::kFactor, i) + int64_t(top) * d;
    T* q = stack.matrix(Slot::kBasis, i) + top;
    if (tile == 0 && team.rank() == 0) {
      *stack.counter(OfFactor::kDone, i) = *stack.counter(OfFactor::kBegun, i) = 0;
    }
    for (int left = 0; left < d; left += kTile<T>) {
      const auto get = [&](int row, int column) {
        const int64_t entry = int64_t(row) * size + left + column;
        const bool is_there = top + row < size && left + column < size;
        k[int64_t(row) * d + left + column] =
            is_there && place >= 0 ? stack.factors[of_factor + entry] : T(0);
        if (!is_there) return T(top + row == left + column);
        return place < 0 ? T(0) : stack.bases[of_basis + entry];
      };
      const auto put = [&](int column, int row, T entry) {
        q[int64_t(left + column) * d + row] = entry;
      };
      turn_tile(team, rows, d - left < kTile<T> ? d - left : kTile<T>, scratch, get, put);
    }
  }
};

// Sums along one row of H, in float64: squares of 1e-30 are zero in float32.
struct ExamineRow {
  static constexpr bool kByWarp = true;
  SOAP_FAST_HOST_DEVICE static int parts(int d, RefreshCall) { return d; }

  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i,
                                        int row, RefreshCall, double, T*) {
    const T* h = stack.matrix(Slot::kRotated, i) + int64_t(row) * stack.d;
    double absolute = 0, off_diagonal = 0, squares = 0;
    for (int column = team.rank(); column < stack.d; column += team.size()) {
      const double entry = h[column];
      absolute += std::fabs(entry);
      squares += entry * entry;
      if (column != row) off_diagonal += entry * entry;
    }
    absolute = team.sum(absolute);
    off_diagonal = team.sum(off_diagonal);
    squares = team.sum(squares);
    if (team.rank() != 0) return;
    stack.of_rows(OfRow::kDiagonal, i)[row] = h[row];
    stack.of_rows(OfRow::kAbsolute, i)[row] = absolute;
    stack.of_rows(OfRow::kOffDiagonalSquares, i)[row] = off_diagonal;
    stack.of_rows(OfRow::kSquares, i)[row] = squares;
  }
};

// From the sums: whether this basis changes, the order of its columns, and the shift of H.
struct Decide {
  static constexpr bool kByWarp = false;
  SOAP_FAST_HOST_DEVICE static int parts(int, RefreshCall) { return 1; }

  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i, int,
                                        RefreshCall, double tolerance, T* scratch) {
    const int d = stack.d;
    const double* diagonal = stack.of_rows(OfRow::kDiagonal, i);
    double off_diagonal = 0, squares = 0, largest = 0, norm = 0;
    for (int row = team.rank(); row < d; row += team.size()) {
      off_diagonal += stack.of_rows(OfRow::kOffDiagonalSquares, i)[row];
      squares += stack.of_rows(OfRow::kSquares, i)[row];
      const double absolute = stack.of_rows(OfRow::kAbsolute, i)[row];
      if (diagonal[row] > largest) largest = diagonal[row];
      if (absolute > norm) norm = absolute;
    }
    off_diagonal = team.sum(off_diagonal);
    squares = team.sum(squares);
    largest = team.max(largest);  // max|H| for a positive semidefinite H
    norm = team.max(norm);        // |H|_inf

    const double share = squares > 0 ? std::sqrt(off_diagonal / squares) : 0;
    const bool finite = squares <= Float<double>::greatest && norm <= double(Float<T>::greatest);
    if (team.rank() == 0) {
      const Outcome outcome = choose(stack, i, finite, largest, share, tolerance);
      const bool seen = outcome != Outcome::kLeftOut && finite && stack.place(i) >= 0;
      stack.off_diagonals[i] = seen ? T(share) : Float<T>::not_a_number;
      stack.of_factor(OfFactor::kLargest, i) = largest;
      // 4 · 2^-24 · sqrt(d) · |H|_inf in float32: what rounding may have taken from H's pivots.
      stack.of_factor(OfFactor::kShift, i) =
          2 * Float<T>::epsilon * std::sqrt(double(stack.size)) * norm;
      stack.decide(i, outcome);
    }
    if (!finite) return;
    put_in_order(team, stack, i, scratch);
  }

 private:
  // Columns by descending eigenvalue, equal ones as they are, unit vectors where their rows are.
  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void put_in_order(const Team& team, const RefreshStack<T>& stack,
                                                 int i, T* scratch) {
    const int d = stack.d;
    const double* unit = stack.of_rows(OfRow::kUnit, i);
    const double* diagonal = stack.of_rows(OfRow::kDiagonal, i);
    const auto eigenvalue = [&](int j) {
      return unit[j] == kNoUnit ? T(diagonal[j]) : -Float<T>::infinity;
    };
    const bool fits = d <= 2 * kTileElements<T>;  // into the memory of two tiles
    for (int j = team.rank(); fits && j < d; j += team.size()) scratch[j] = eigenvalue(j);
    team.sync();
    for (int j = team.rank(); j < d; j += team.size()) {
      const T mine = eigenvalue(j);
      const auto count_before = [&](const auto& other) {
        int count = 0;
        for (int k = 0; k < d; ++k) {
          count += int(other(k) > mine) | (int(other(k) == mine) & int(k < j));
        }
        return count;
      };
      int place = int(unit[j]);
      if (unit[j] == kNoUnit) {
        place =
            fits ? count_before([scratch](int k) { return scratch[k]; }) : count_before(eigenvalue);
      }
      stack.sorted(i)[place] = j;
    }
  }

  template <typename T>
  SOAP_FAST_HOST_DEVICE static Outcome choose(const RefreshStack<T>& stack, int i, bool finite,
                                              double largest, double share, double tolerance) {
    if (!stack.allowed[i]) return Outcome::kLeftOut;
    if (!finite || stack.place(i) < 0) return Outcome::kFailed;
    if (largest < double(Float<T>::smallest_normal)) return Outcome::kKept;
    if (tolerance > 0 && share <= tolerance) return Outcome::kKept;
    return Outcome::kUnderWay;
  }
};

// (H[order, order] + shift I) / largest, its lower triangle; and Q[:, order]. A tile of rows of
// both.
template <typename T>
struct ArrangeRows {
  static constexpr bool kByWarp = false;
  SOAP_FAST_HOST_DEVICE static int parts(int d, RefreshCall) { return tiles_of(d, kTile<T>); }

  template <typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i,
                                        int tile, RefreshCall, double, T* scratch) {
    if (!stack.alive(i)) return;
    const int d = stack.d, top = tile * kTile<T>;
    const int rows = d - top < kTile<T> ? d - top : kTile<T>;
    const int64_t* order = stack.sorted(i);
    const T* h = stack.matrix(Slot::kRotated, i);
    const T* q = stack.matrix(Slot::kBasis, i) + top;
    T* sorted_h = stack.matrix(Slot::kFactor, i) + int64_t(top) * d;
    T* sorted_q = stack.matrix(Slot::kCarry, i) + int64_t(top) * d;
    const double largest = stack.of_factor(OfFactor::kLargest, i);
    const double shift = stack.of_factor(OfFactor::kShift, i);
    for (int left = 0; left < d; left += kTile<T>) {
      const int columns = d - left < kTile<T> ? d - left : kTile<T>;
      turn_tile(
          team, columns, rows, scratch,
          [&](int column, int row) { return q[order[left + column] * d + row]; },
          [&](int row, int column, T entry) {
            sorted_q[int64_t(row) * d + left + column] = entry;
          });
      // H is symmetric but for rounding: along its rows is along memory.
      for (int e = team.rank(); e < rows * kTile<T>; e += team.size()) {
        const int row = e / kTile<T>, column = left + e % kTile<T>;
        if (column > top + row) continue;
        const double entry = h[order[top + row] * d + order[column]];
        sorted_h[int64_t(row) * d + column] =
            T((entry + (column == top + row ? shift : 0)) / largest);
      }
    }
  }
};

}  // namespace soap_fast
