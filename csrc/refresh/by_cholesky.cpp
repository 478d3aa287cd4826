// A refresh by Cholesky, torch's side: which factors go together, their memory, their products.
#include "refresh/by_cholesky.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "linalg/grouped_matmul.h"
#include "refresh/rounds.h"

namespace soap_fast {
namespace {

using torch::headeronly::ScalarType;

// The memory of some parts, and their table.
template <typename T>
struct Batch {
  std::vector<Part> parts;
  Tensor matrices, measures;  // hold the memory that the table points to
  RefreshTable<T> table;
};

template <typename T>
RefreshStack<T> entry_of(const RefreshArguments& arguments, const Part& part) {
  const size_t s = part.stack;
  const int64_t i = part.first, size = part.size;
  RefreshStack<T> entry{};
  entry.factors = arguments.factors[s].const_data_ptr<T>();
  entry.bases = arguments.bases[s].mutable_data_ptr<T>();
  if (arguments.in_order(s)) entry.bases += i * size * size;
  entry.selection = arguments.selections[s].const_data_ptr<int32_t>() + i;
  entry.allowed = arguments.allowed[s].const_data_ptr<bool>() + i;
  entry.orders = arguments.orders[s].mutable_data_ptr<int64_t>() + i * size;
  entry.carries = arguments.carries[s].mutable_data_ptr<T>() + i * size * size;
  entry.outcomes = arguments.outcomes[s].mutable_data_ptr<int64_t>() + i;
  entry.off_diagonals = arguments.off_diagonals[s].mutable_data_ptr<T>() + i;
  entry.n = static_cast<int>(arguments.factors[s].size(0));
  entry.k = static_cast<int>(part.count);
  entry.size = static_cast<int>(size);
  entry.d = static_cast<int>(part.d());
  entry.in_order = arguments.in_order(s);
  return entry;
}

template <typename T>
void allocate(const RefreshArguments& arguments, Batch<T>& batch) {
  const Tensor& like = arguments.factors[batch.parts[0].stack];
  int64_t elements = 0, measures = 0;
  for (const Part& part : batch.parts) {
    elements += workspace(part);
    measures += refresh_measures(part.count, part.d());
  }
  const Lent& lent = arguments.workspace;
  const bool fits = lent && lent->scalar_type() == like.scalar_type() && lent->numel() >= elements;
  batch.matrices = fits ? *lent : torch::stable::new_empty(like, {elements});
  batch.measures = torch::stable::new_empty(like, {measures}, ScalarType::Double);
}

// Of a stack's matrices [k, d, d] what begins at a row and a column.
template <typename T>
Matrices within(const RefreshStack<T>& stack, Slot slot, int64_t row = 0, int64_t column = 0) {
  const int64_t d = stack.d;
  const T* start = stack.matrix(slot, 0) + row * d + column;
  return {reinterpret_cast<int64_t>(start), d * d, d, 1};
}

Matrices transposed(const Matrices& of) { return {of.address, of.matrix, of.column, of.row}; }

template <typename T>
void multiply(const Batch<T>& batch, const Operands& of) {
  std::vector<Group> groups;
  groups.reserve(batch.table.count);
  for (int p = 0; p < batch.table.count; ++p) {
    const RefreshStack<T>& stack = batch.table.stacks[p];
    groups.push_back({stack.k, stack.d, stack.d, stack.d, within(stack, of.a),
                      transposed(within(stack, of.b)), within(stack, of.out)});
  }
  call_grouped_matmul_at(batch.matrices, groups, of.structure);
}

template <typename T>
void multiply_panel(const Batch<T>& batch, PanelProduct product, RefreshCall call) {
  const PanelOperands of = operands_of<T>(product, call);
  std::vector<Group> groups;
  groups.reserve(batch.table.count);
  for (int p = 0; p < batch.table.count; ++p) {
    const RefreshStack<T>& stack = batch.table.stacks[p];
    if (stack.d <= of.first) continue;
    const int64_t width = std::min<int64_t>(of.width, stack.d - of.first);
    groups.push_back({stack.k, stack.d - of.top, width, of.first, within(stack, of.a, of.top),
                      transposed(within(stack, of.b, of.first)),
                      within(stack, of.out, of.top, of.first)});
  }
  call_grouped_matmul_at(batch.matrices, groups, kSubtract);
}

template <typename T>
void refresh_batch(const RefreshArguments& arguments, const RunPhase<T>& run,
                   const Launched& launched, Batch<T>& batch) {
  allocate(arguments, batch);
  batch.table.count = static_cast<int>(batch.parts.size());
  batch.table.tolerance = arguments.tolerance;
  T* matrices = batch.matrices.template mutable_data_ptr<T>();
  double* measures = batch.measures.template mutable_data_ptr<double>();
  int64_t offset = 0, largest = 0;
  for (size_t p = 0; p < batch.parts.size(); ++p) {
    const Part& part = batch.parts[p];
    batch.table.stacks[p] = entry_of<T>(arguments, part);
    batch.table.stacks[p].matrices = matrices + offset;
    batch.table.stacks[p].measures = measures;
    offset += workspace(part);
    measures += refresh_measures(part.count, part.d());
    largest = std::max(largest, part.d());
  }
  const auto launch = [&](Phase phase, RefreshCall call) {
    run(phase, batch.table, call);
    launched();
  };
  const auto whole = [&](Product product) {
    multiply(batch, operands_of(product));
    launched();
  };
  const auto panel = [&](PanelProduct product, RefreshCall call) {
    multiply_panel(batch, product, call);
    launched();
  };
  refresh_large<T>(static_cast<int>(largest), launch, whole, panel);
}

// Small factors: no workspace but their own, so that all stacks go together.
template <typename T>
void refresh_small(const RefreshArguments& arguments, const RunPhase<T>& run,
                   const Launched& launched, const std::vector<Part>& parts) {
  for (size_t first = 0; first < parts.size(); first += kMostStacks) {
    RefreshTable<T> table{};
    table.tolerance = arguments.tolerance;
    table.count = static_cast<int>(std::min<size_t>(kMostStacks, parts.size() - first));
    for (int p = 0; p < table.count; ++p) {
      table.stacks[p] = entry_of<T>(arguments, parts[first + p]);
    }
    run(Phase::kSmall, table, RefreshCall{kOfRotated, 0});
    launched();
  }
}

Parts parts_of(const TensorList& factors, const TensorList& selections, ScalarType dtype,
               int64_t householder_up_to) {
  Parts parts;
  for (size_t s = 0; s < factors.size(); ++s) {
    if (factors[s].scalar_type() != dtype) continue;
    parts.add({s, 0, selections[s].size(0), factors[s].size(1)}, householder_up_to);
  }
  return parts;
}

template <typename T>
void refresh_of_dtype(const RefreshArguments& arguments, ScalarType dtype,
                      int64_t householder_up_to, const RunPhase<T>& run, const Launched& launched) {
  const auto [small, large] =
      parts_of(arguments.factors, arguments.selections, dtype, householder_up_to);
  refresh_small(arguments, run, launched, small);
  const Lent& lent = arguments.workspace;
  const int64_t bytes = lent && lent->scalar_type() == dtype ? lent->numel() * sizeof(T) : 0;
  for (const std::vector<Part>& parts : rounds_of(large, sizeof(T), bytes)) {
    Batch<T> batch{};
    batch.parts = parts;
    refresh_batch(arguments, run, launched, batch);
  }
}

// Nearly all are, and torch's operator would be called to hand each of them back.
TensorList contiguous(const TensorList& tensors) {
  TensorList result;
  result.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    result.push_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
  }
  return result;
}

}  // namespace

void refresh_by_cholesky(const RefreshArguments& given, int64_t householder_up_to,
                         const RunPhase<float>& run_float, const RunPhase<double>& run_double,
                         const Launched& launched) {
  check(householder_up_to >= 0 && householder_up_to <= kHouseholderUpTo,
        "refresh_: householder_up_to=", householder_up_to, " is outside [0, ", kHouseholderUpTo,
        "], the sizes that a warp can have");
  const TensorList factors = contiguous(given.factors), selections = contiguous(given.selections);
  const TensorList allowed = contiguous(given.allowed);
  const RefreshArguments arguments{factors,        given.bases,     selections,
                                   allowed,        given.tolerance, given.orders,
                                   given.carries,  given.outcomes,  given.off_diagonals,
                                   given.workspace};
  refresh_of_dtype(arguments, ScalarType::Float, householder_up_to, run_float, launched);
  refresh_of_dtype(arguments, ScalarType::Double, householder_up_to, run_double, launched);
}

}  // namespace soap_fast
