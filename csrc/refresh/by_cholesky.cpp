// A refresh by Cholesky, torch's side: which factors go together, their memory, their products.
#include "refresh/by_cholesky.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <utility>

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
  TensorList slots[kSlots], transposed[kSlots];  // [count, d, d] each, by Slot
};

// Whether carrying matrices are to be written by columns.
bool is_turned(const Tensor& carries) { return !carries.is_contiguous(); }

template <typename T>
RefreshStack<T> entry_of(const RefreshArguments& arguments, const Part& part) {
  const size_t s = part.stack;
  const int64_t i = part.first, size = part.size;
  RefreshStack<T> entry{};
  entry.factors = arguments.factors[s].const_data_ptr<T>();
  entry.bases = arguments.bases[s].mutable_data_ptr<T>();
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
  entry.turned = is_turned(arguments.carries[s]);
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
  batch.matrices = torch::stable::new_empty(like, {elements});
  batch.measures = torch::stable::new_empty(like, {measures}, ScalarType::Double);
}

template <typename T>
void add_slots(const RefreshArguments& arguments, const Part& part, int64_t offset,
               Batch<T>& batch) {
  const int64_t d = part.d(), all = part.count * d * d;
  for (int slot = 0; slot < kSlots; ++slot) {
    Tensor carries = arguments.carries[part.stack];
    if (is_turned(carries)) carries = torch::stable::transpose(carries, 1, 2);
    Tensor matrices = slot < slots_in_workspace(part.size)
                          ? torch::stable::view(
                                torch::stable::narrow(batch.matrices, 0, offset + slot * all, all),
                                {part.count, d, d})
                          : torch::stable::narrow(carries, 0, part.first, part.count);
    batch.slots[slot].push_back(matrices);
    batch.transposed[slot].push_back(torch::stable::transpose(matrices, 1, 2));
  }
}

// Rows from `row` on and columns from `column` on of matrices [count, d, d], or the transpose. Each
// part of each panel's product takes three: by narrow() and transpose() they take the host 6 us, by
// this function 1 us (an AMD EPYC).
Tensor block(const Tensor& matrices, int64_t row, int64_t rows, int64_t column, int64_t columns,
             bool transposed) {
  const int64_t d = matrices.size(2);
  std::array<int64_t, 3> sizes{matrices.size(0), rows, columns}, strides{d * d, d, 1};
  if (transposed) {
    std::swap(sizes[1], sizes[2]);
    std::swap(strides[1], strides[2]);
  }
  AtenTensorHandle view;
  if (aoti_torch__reinterpret_tensor(matrices.get(), 3, sizes.data(), strides.data(),
                                     row * d + column, &view)) {
    throw_failure("aoti_torch__reinterpret_tensor");
  }
  return Tensor(view);
}

template <typename T>
void multiply_panel(const Batch<T>& batch, PanelProduct product, RefreshCall call) {
  const PanelOperands of = operands_of<T>(product, call);
  TensorList a, b, out;
  for (size_t p = 0; p < batch.parts.size(); ++p) {
    const int64_t d = batch.parts[p].d(), rows = d - of.top;
    if (d <= of.first) continue;
    const int64_t width = std::min<int64_t>(of.width, d - of.first);
    const auto slot = [&](Slot slot) -> const Tensor& { return batch.slots[int(slot)][p]; };
    a.push_back(block(slot(of.a), of.top, rows, 0, of.first, false));
    b.push_back(block(slot(of.b), of.first, width, 0, of.first, true));
    out.push_back(block(slot(of.out), of.top, rows, of.first, width, false));
  }
  call_grouped_matmul(a, b, out, kSubtract);
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
    add_slots(arguments, part, offset, batch);
    offset += workspace(part);
    measures += refresh_measures(part.count, part.d());
    largest = std::max(largest, part.d());
  }
  const auto launch = [&](Phase phase, RefreshCall call) {
    run(phase, batch.table, call);
    launched();
  };
  const auto multiply = [&](Product product) {
    const Operands usual = operands_of(product);
    TensorList a = batch.slots[int(usual.a)], b = batch.transposed[int(usual.b)];
    for (size_t p = 0; p < batch.parts.size(); ++p) {
      if (!batch.table.stacks[p].turned) continue;
      const Operands of = operands_of(product, true);
      a[p] = batch.slots[int(of.a)][p];
      b[p] = batch.transposed[int(of.b)][p];
    }
    call_grouped_matmul(a, b, batch.slots[int(usual.out)], usual.structure);
    launched();
  };
  refresh_large<T>(static_cast<int>(largest), launch, multiply,
                   [&](PanelProduct product, RefreshCall call) {
                     multiply_panel(batch, product, call);
                     launched();
                   });
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
  for (const std::vector<Part>& parts : rounds_of(large, sizeof(T))) {
    Batch<T> batch{};
    batch.parts = parts;
    refresh_batch(arguments, run, launched, batch);
  }
}

TensorList contiguous(const TensorList& tensors) {
  TensorList result;
  for (const Tensor& tensor : tensors) result.push_back(torch::stable::contiguous(tensor));
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
  const RefreshArguments arguments{factors,       given.bases,     selections,
                                   allowed,       given.tolerance, given.orders,
                                   given.carries, given.outcomes,  given.off_diagonals};
  refresh_of_dtype(arguments, ScalarType::Float, householder_up_to, run_float, launched);
  refresh_of_dtype(arguments, ScalarType::Double, householder_up_to, run_double, launched);
}

}  // namespace soap_fast
