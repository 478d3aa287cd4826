// The middle phases of a refresh by Cholesky: two factorisations L Lᵀ, B = L1 / D, X = Q B L2^-T.
//
// A factorisation goes by panels of kPanel columns, a launch of FactorColumns each, and a panel by
// steps of kTile columns. In each step some teams make its block of columns of L, the others take
// the product of the block before it from what remains to the right of it in the panel. A whole
// panel is brought up to date before its first step, see panels.h, and so is the solve's. L is
// written beside its source, since each team of a block factors the diagonal tile for itself while
// others read it. Nothing is substituted back: each diagonal tile is inverted while it is factored.
#pragma once

#include "linalg/cholesky.h"
#include "linalg/turn_tile.h"
#include "refresh/phases/in_steps.h"

namespace soap_fast {

// Where a factorisation reads and writes.
struct Round {
  Slot source, target;

  SOAP_FAST_HOST_DEVICE static Round of(RefreshCall call) {
    if (call.round == kOfColumns) return {Slot::kRotated, Slot::kCarry};
    return {Slot::kFactor, Slot::kResult};
  }
};

// Columns of a panel, a multiple of both tiles. By the model of a refresh's time (docs/cost.md) all
// widths from 256 to 512 take the same within 0.5 % where factors are large, and ELIC's three
// panels of this one take 2 % less than others; narrower ones are more launches.
constexpr int kPanel = 384;
template <typename T>
constexpr int kPanelTiles = kPanel / kTile<T>;

// block [rows, kTileLeading] = source [rows, columns].
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void load_tile(const Team& team, int rows, int columns, const T* source,
                                     int64_t ld, T* block) {
  for (int e = team.rank(); e < rows * kTile<T>; e += team.size()) {
    const int row = e / kTile<T>, column = e % kTile<T>;
    if (column < columns) block[row * kTileLeading<T> + column] = source[row * ld + column];
  }
}

// Of L1 all, of L2 what stands below its diagonal tiles, and those tiles' inverses: SolveRows needs
// no more.
template <typename T>
struct FactorColumns {
  static constexpr bool kByWarp = false;
  SOAP_FAST_HOST_DEVICE static int parts(int d, RefreshCall call) {
    if (d <= call.step * kTile<T>) return 0;
    const int tiles = tiles_of(d, kTile<T>) - (call.step + 1);  // of rows behind this block
    const int columns = columns_behind(tiles, call);
    return teams_of_block(d, call) + columns * tiles - columns * (columns - 1) / 2;
  }

  template <typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i,
                                        int part, RefreshCall call, double, T* scratch) {
    // Another team's verdict on this factor may come in between: one thread looks for all.
    if (team.max(team.rank() == 0 && stack.alive(i) ? 1.0 : 0.0) == 0) return;
    const int block = teams_of_block(stack.d, call);
    if (part < block) {
      factor(team, stack, i, part, call, scratch);
    } else {
      update(team, stack, i, part - block, call, scratch);
    }
  }

 private:
  // Blocks of a panel behind this step's that the one before it changes; the product that came
  // before a panel has changed all of it.
  SOAP_FAST_HOST_DEVICE static int columns_behind(int tiles, RefreshCall call) {
    const int within = call.step % kPanelTiles<T>, most = kPanelTiles<T> - 1 - within;
    return within == 0 ? 0 : tiles < most ? tiles : most;
  }

  // A tile of rows below the diagonal tile each, at least one for the diagonal tile itself.
  SOAP_FAST_HOST_DEVICE static int teams_of_block(int d, RefreshCall call) {
    const int below = d - (call.step + 1) * kTile<T>;
    return below > 0 ? tiles_of(below, kTile<T>) : 1;
  }

  template <typename Team>
  SOAP_FAST_HOST_DEVICE static void factor(const Team& team, const RefreshStack<T>& stack, int i,
                                           int tile, RefreshCall call, T* scratch) {
    const int d = stack.d, first = call.step * kTile<T>;
    const int width = d - first < kTile<T> ? d - first : kTile<T>;
    const int top = first + width + tile * kTile<T>;
    const int rows = d - top < kTile<T> ? d - top : kTile<T>;  // none below the last tile
    T *staging = scratch, *diagonal = staging + kStagingElements<T>;
    T* below = diagonal + kTileElements<T>;
    load_updated(team, stack, i, first, width, call, staging, diagonal);
    load_updated(team, stack, i, top, rows, call, staging, below);
    team.sync();
    if (factor_tile(team, width, lift(stack, i, call), diagonal, staging) != kNoFailedPivot) {
      if (tile == 0 && team.rank() == 0) stack.decide(i, Outcome::kFailed);
      return;
    }
    T* target = stack.matrix(Round::of(call).target, i) + first;
    if (tile == 0) {
      store_diagonal(team, width, diagonal, call, target + int64_t(first) * d, d);
    }
    T* out = target + int64_t(top) * d;
    multiply_by_transposed_lower(team, rows, width, below, diagonal, [&](int row, int column, T x) {
      out[int64_t(row) * d + column] = x;
    });
  }

  // Rows [top, top + rows) of this step's block of columns, without the product of the block
  // before it in its panel.
  template <typename Team>
  SOAP_FAST_HOST_DEVICE static void load_updated(const Team& team, const RefreshStack<T>& stack,
                                                 int i, int top, int rows, RefreshCall call,
                                                 T* staging, T* block) {
    const int d = stack.d, first = call.step * kTile<T>;
    const int width = d - first < kTile<T> ? d - first : kTile<T>;
    const T* source = stack.matrix(Round::of(call).source, i) + int64_t(top) * d + first;
    if (call.step % kPanelTiles<T> == 0) return load_tile(team, rows, width, source, d, block);
    if (rows <= 0) return;
    const T* l = stack.matrix(Round::of(call).target, i) + first - kTile<T>;
    tile_product(team, rows, width, kTile<T>, l + int64_t(top) * d, d, l + int64_t(first) * d, d,
                 staging, [&](int row, int column, T product) {
                   block[row * kTileLeading<T> + column] =
                       source[int64_t(row) * d + column] - product;
                 });
  }

  // A tile of the lower triangle behind this step's block, within its panel, without the product of
  // the block before. They are numbered column by column, each from its diagonal tile down.
  template <typename Team>
  SOAP_FAST_HOST_DEVICE static void update(const Team& team, const RefreshStack<T>& stack, int i,
                                           int tile, RefreshCall call, T* scratch) {
    const int d = stack.d, next = (call.step + 1) * kTile<T>;
    int column = 0;
    for (int below = tiles_of(d - next, kTile<T>); tile >= below; --below, ++column) tile -= below;
    const int top = next + (column + tile) * kTile<T>, left = next + column * kTile<T>;
    const int rows = d - top < kTile<T> ? d - top : kTile<T>;
    const int columns = d - left < kTile<T> ? d - left : kTile<T>;
    const T* l = stack.matrix(Round::of(call).target, i) + next - 2 * kTile<T>;
    T* trailing = stack.matrix(Round::of(call).source, i) + int64_t(top) * d + left;
    tile_product(
        team, rows, columns, kTile<T>, l + int64_t(top) * d, d, l + int64_t(left) * d, d, scratch,
        [&](int row, int column, T product) { trailing[int64_t(row) * d + column] -= product; });
  }

  // In units of H as it was scaled: rounding may have taken 16 times as much from a pivot of a
  // factor of low rank as the shift has added. BᵀB is far from singular.
  SOAP_FAST_HOST_DEVICE static T lift(const RefreshStack<T>& stack, int i, RefreshCall call) {
    if (call.round == kOfColumns) return 0;
    return T(16 * stack.of_factor(OfFactor::kShift, i) / stack.of_factor(OfFactor::kLargest, i));
  }

  // The lower triangle of L1's tile, or of the inverse of L2's.
  template <typename Team>
  SOAP_FAST_HOST_DEVICE static void store_diagonal(const Team& team, int width, const T* block,
                                                   RefreshCall call, T* target, int64_t ld) {
    for (int e = team.rank(); e < width * kTile<T>; e += team.size()) {
      const int row = e / kTile<T>, column = e % kTile<T>;
      if (column > row) continue;
      target[row * ld + column] = call.round == kOfColumns ? block[row * kTileLeading<T> + column]
                                                           : factor_entry(block, row, column);
    }
  }
};

template <typename T>
constexpr bool kGoesBySteps<FactorColumns<T>> = true;
static_assert(kPanelTiles<float> <= kMostSteps && kPanelTiles<double> <= kMostSteps,
              "a panel is one launch");

// The transpose of B = L1 / D with D the norms of L1's columns; zeros below the diagonal, for the
// products to come. A tile of its rows.
template <typename T>
struct NormaliseColumns {
  static constexpr bool kByWarp = false;
  static constexpr int kStrands = 4;  // sums per column: 256 threads have something to do
  SOAP_FAST_HOST_DEVICE static int parts(int d, RefreshCall) { return tiles_of(d, kTile<T>); }

  template <typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i,
                                        int tile, RefreshCall, double, T* scratch) {
    if (!stack.alive(i)) return;
    const int d = stack.d, first = tile * kTile<T>;
    const int width = d - first < kTile<T> ? d - first : kTile<T>;
    const T* l = stack.matrix(Slot::kResult, i) + first;
    T* b = stack.matrix(Slot::kFactor, i) + int64_t(first) * d;
    T *squares = scratch + kTileElements<T>, *inverse = squares + kStrands * kTile<T>;
    for (int e = team.rank(); e < width * kStrands; e += team.size()) {
      const int column = e % width;
      T sum = 0;
      for (int row = first + column + e / width; row < d; row += kStrands) {
        sum += l[int64_t(row) * d + column] * l[int64_t(row) * d + column];
      }
      squares[e] = sum;
    }
    team.sync();
    for (int column = team.rank(); column < width; column += team.size()) {
      T sum = 0;
      for (int strand = 0; strand < kStrands; ++strand) sum += squares[strand * width + column];
      inverse[column] = 1 / std::sqrt(sum);
    }
    team.sync();
    for (int top = 0; top < d; top += kTile<T>) {
      turn_tile(
          team, d - top < kTile<T> ? d - top : kTile<T>, width, scratch,
          [&](int row, int column) {
            if (top + row < first + column) return T(0);
            return l[int64_t(top + row) * d + column] * inverse[column];
          },
          [&](int column, int row, T entry) { b[int64_t(column) * d + top + row] = entry; });
    }
  }
};

// A panel of X = Z L2^-T in place of Z = Q B, from which the panels before have been taken, and of
// its transpose: a tile of rows from its first column there to its last.
template <typename T>
struct SolveRows {
  static constexpr bool kByWarp = false;
  SOAP_FAST_HOST_DEVICE static int parts(int d, RefreshCall call) {
    return call.step * kTile<T> < d ? tiles_of(d, kTile<T>) : 0;
  }

  template <typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i,
                                        int tile, RefreshCall call, double, T* scratch) {
    if (!stack.alive(i)) return;
    const int d = stack.d, top = tile * kTile<T>, panel = call.step * kTile<T>;
    const int rows = d - top < kTile<T> ? d - top : kTile<T>;
    const int columns = d - panel < kPanel ? d - panel : kPanel;
    const T* l_rows = stack.matrix(Slot::kCarry, i) + int64_t(panel) * d + panel;
    T* x = stack.matrix(Slot::kResult, i) + int64_t(top) * d + panel;
    T *staging = scratch, *inverse = staging + kStagingElements<T>;
    T* block = inverse + kTileElements<T>;
    for (int first = 0; first < columns; first += kTile<T>, l_rows += int64_t(kTile<T>) * d) {
      const int width = columns - first < kTile<T> ? columns - first : kTile<T>;
      load_tile(team, width, width, l_rows + first, d, inverse);
      tile_product(
          team, rows, width, first, x, d, l_rows, d, staging, [&](int row, int column, T product) {
            block[row * kTileLeading<T> + column] = x[int64_t(row) * d + first + column] - product;
          });
      team.sync();
      multiply_by_transposed_lower(
          team, rows, width, block, inverse,
          [&](int row, int column, T entry) { x[int64_t(row) * d + first + column] = entry; });
      team.sync();
      T* transposed = stack.matrix(Slot::kFactor, i) + int64_t(panel + first) * d + top;
      turn_tile(
          team, rows, width, block,
          [&](int row, int column) { return x[int64_t(row) * d + first + column]; },
          [&](int column, int row, T entry) { transposed[int64_t(column) * d + row] = entry; });
    }
  }
};

}  // namespace soap_fast
