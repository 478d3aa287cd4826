// The factors of one refresh as kernels see them: by value, as a kernel's argument, so that nothing
// is uploaded and a launch can be captured in a CUDA graph.
//
// A phase is one kernel: parts(d, call) says into how many parts a factor is divided, and run() has
// one of them done by a team. Rows are the work of a warp, whole factors that of a block.
#pragma once

#include "linalg/team.h"
#include "refresh/phases/outcome.h"

namespace soap_fast {

// Matrices of workspace per factor, named by what they hold in turn. Whatever is multiplied lies so
// that rows meet rows, as tensor cores want it.
enum class Slot {
  kFactor,   // K; then H sorted and shifted; then Bᵀ, B = L1 / D; then Xᵀ
  kBasis,    // Qᵀ, with the unit vectors of K's zero rows among its rows; then Qᵀ as it was
  kRotated,  // H = QᵀKQ; then BᵀB; then XᵀX; then -E/2; then -(E/2 + 3/8 E²)
  kResult,   // L1; then Q B; then X, the new basis but for a correction
  // Where the caller gets the carrying matrix, if its rows are whole quads; else workspace too.
  // QᵀK; then Q with sorted columns; then L2, see FactorColumns; then sqrt(3/8) E; then QᵀX, or XᵀQ
  // where that is asked for.
  kCarry,
};
constexpr int kSlots = 5;

// In workspace a factor has its size rounded up to quads, as products load rows: the rows and
// columns beyond are zero in K, and apart from all others as zero rows are.
constexpr int kQuad = 4;
SOAP_FAST_HOST_DEVICE constexpr int64_t in_quads(int64_t size) {
  return (size + kQuad - 1) / kQuad * kQuad;
}
SOAP_FAST_HOST_DEVICE constexpr int slots_in_workspace(int64_t size) {
  return size == in_quads(size) ? kSlots - 1 : kSlots;
}

// Numbers per row of a factor, then numbers per factor, all in `measures`.
// kPlace: of a row, by number_rows(). kUnit: of a column of Q that is the unit vector of a zero
// row, the place of that row; else kNoUnit. kOrder: of a column as sorted, what it was. kRows: how
// many rows are not zero. kDone and kBegun are counters of a launch that goes by steps, see
// in_steps.h; between launches they are 0.
enum class OfRow { kDiagonal, kAbsolute, kOffDiagonalSquares, kSquares, kPlace, kUnit, kOrder };
constexpr int kOfRow = 7;
constexpr double kNoUnit = -1;
enum class OfFactor { kLargest, kShift, kRows, kDone, kBegun };
constexpr int kOfFactor = 5;

// k selected factors [size, size] of one stack of n. Everything contiguous. Small ones need neither
// workspace nor whole quads.
template <typename T>
struct RefreshStack {
  const T* factors;          // [n, size, size]
  T* bases;                  // [n, size, size]
  const int32_t* selection;  // [k]
  const bool* allowed;       // [k]
  int64_t* orders;           // [k, size]
  T* carries;                // [k, size, size], QᵀX by rows, or by columns if `turned`
  int64_t* outcomes;         // [k], an Outcome each
  T* off_diagonals;          // [k]
  T* matrices;               // [slots_in_workspace(size), k, d, d]
  double* measures;          // [kOfRow, k, d] and [kOfFactor, k]
  int n, k, size;
  int d : 31;           // in_quads(size)
  unsigned turned : 1;  // in the place of a sign, or a table would not fit

  SOAP_FAST_HOST_DEVICE T* matrix(Slot slot, int i) const {
    if (slot == Slot::kCarry && d == size) return carry(i);
    return matrices + (int64_t(slot) * k + i) * d * d;
  }
  SOAP_FAST_HOST_DEVICE double* of_rows(OfRow what, int i) const {
    return measures + (int64_t(what) * k + i) * d;
  }
  SOAP_FAST_HOST_DEVICE double& of_factor(OfFactor what, int i) const {
    return measures[int64_t(kOfRow) * k * d + int64_t(what) * k + i];
  }
  SOAP_FAST_HOST_DEVICE unsigned* counter(OfFactor what, int i) const {
    return reinterpret_cast<unsigned*>(&of_factor(what, i));
  }
  SOAP_FAST_HOST_DEVICE int64_t* sorted(int i) const {
    return reinterpret_cast<int64_t*>(of_rows(OfRow::kOrder, i));
  }
  SOAP_FAST_HOST_DEVICE int64_t* order(int i) const { return orders + int64_t(i) * size; }
  SOAP_FAST_HOST_DEVICE T* carry(int i) const { return carries + int64_t(i) * size * size; }
  SOAP_FAST_HOST_DEVICE bool in_stage(int i, Outcome stage) const {
    return outcomes[i] == int64_t(stage);
  }
  SOAP_FAST_HOST_DEVICE void decide(int i, Outcome outcome) const {
    outcomes[i] = int64_t(outcome);
  }
  // Whether factor i is still on its way to a new basis.
  SOAP_FAST_HOST_DEVICE bool alive(int i) const { return in_stage(i, Outcome::kUnderWay); }
  // Its place in the stack; -1 for an index outside, since selections are not read on the host.
  SOAP_FAST_HOST_DEVICE int64_t place(int i) const {
    const int32_t index = selection[i];
    return index >= 0 && index < n ? index : -1;
  }
};

SOAP_FAST_HOST_DEVICE constexpr int64_t refresh_measures(int64_t k, int64_t d) {
  return kOfRow * k * d + kOfFactor * k;
}

// Kernels take 4 KiB of arguments wherever they run; more stacks are further tables.
constexpr int kMostStacks = 40;

template <typename T>
struct RefreshTable {
  RefreshStack<T> stacks[kMostStacks];
  int count;
  double tolerance;
};
static_assert(sizeof(RefreshTable<double>) <= 4000, "leave room for what else a kernel is given");

// What distinguishes two launches of one phase.
struct RefreshCall {
  int round;      // of the Cholesky factorisation: H, BᵀB
  int step;       // of that factorisation, or of a panel: its first block of columns
  int steps = 1;  // that the launch makes, of each factor one after the other
};
constexpr int kOfRotated = 0, kOfColumns = 1;

// One team's share of a phase: a row, a tile or the whole of one factor.
template <typename T>
struct RefreshUnit {
  const RefreshStack<T>* stack;  // nullptr: there are fewer units
  int factor;
  int part;
};

// parts(d): into how many parts a factor of size d is divided.
template <typename T, typename Parts>
SOAP_FAST_HOST_DEVICE RefreshUnit<T> unit_of(const RefreshTable<T>& table, int64_t index,
                                             const Parts& parts) {
  for (int s = 0; s < table.count; ++s) {
    const int each = parts(table.stacks[s].d);
    const int64_t here = int64_t(table.stacks[s].k) * each;
    if (index < here) return {&table.stacks[s], int(index / each), int(index % each)};
    index -= here;
  }
  return {nullptr, 0, 0};
}

template <typename T, typename Parts>
int64_t units_in(const RefreshTable<T>& table, const Parts& parts) {
  int64_t total = 0;
  for (int s = 0; s < table.count; ++s) {
    total += int64_t(table.stacks[s].k) * parts(table.stacks[s].d);
  }
  return total;
}

}  // namespace soap_fast
