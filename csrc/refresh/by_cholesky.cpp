// A refresh by Cholesky, torch's side: which factors go together, their memory, their products.
#include "refresh/by_cholesky.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "linalg/grouped_matmul.h"

namespace soap_fast {
namespace {

using torch::headeronly::ScalarType;

// Workspace of factors that go together: five matrices for each. More factors are further rounds,
// as long as a GPU has enough to do in one: this holds five factors of 2560, or 1300 of 192.
constexpr int64_t kMostWorkspaceBytes = int64_t(1) << 30;

// Some of the factors that are selected from one stack.
struct Part {
  size_t stack;
  int64_t first, count, d;
};

// The memory of some parts, and their table.
template <typename T>
struct Batch {
  std::vector<Part> parts;
  Tensor matrices, measures;  // hold the memory that the table points to
  RefreshTable<T> table;
  TensorList slots[kSlots + 1], transposed[kSlots + 1];  // [count, d, d] each, by Slot
};

int64_t workspace(const Part& part) { return kSlots * part.count * part.d * part.d; }

template <typename T>
RefreshStack<T> entry_of(const RefreshArguments& arguments, const Part& part) {
  const size_t s = part.stack;
  const int64_t i = part.first, d = part.d;
  RefreshStack<T> entry{};
  entry.factors = arguments.factors[s].const_data_ptr<T>();
  entry.bases = arguments.bases[s].mutable_data_ptr<T>();
  entry.selection = arguments.selections[s].const_data_ptr<int32_t>() + i;
  entry.allowed = arguments.allowed[s].const_data_ptr<bool>() + i;
  entry.orders = arguments.orders[s].mutable_data_ptr<int64_t>() + i * d;
  entry.carries = arguments.carries[s].mutable_data_ptr<T>() + i * d * d;
  entry.outcomes = arguments.outcomes[s].mutable_data_ptr<int64_t>() + i;
  entry.off_diagonals = arguments.off_diagonals[s].mutable_data_ptr<T>() + i;
  entry.n = static_cast<int>(arguments.factors[s].size(0));
  entry.k = static_cast<int>(part.count);
  entry.d = static_cast<int>(d);
  return entry;
}

template <typename T>
void allocate(const RefreshArguments& arguments, Batch<T>& batch) {
  const Tensor& like = arguments.factors[batch.parts[0].stack];
  int64_t elements = 0, measures = 0;
  for (const Part& part : batch.parts) {
    elements += workspace(part);
    measures += refresh_measures(part.count, part.d);
  }
  batch.matrices = torch::stable::new_empty(like, {elements});
  batch.measures = torch::stable::new_empty(like, {measures}, ScalarType::Double);
}

template <typename T>
void add_slots(const RefreshArguments& arguments, const Part& part, int64_t offset,
               Batch<T>& batch) {
  const int64_t size = part.count * part.d * part.d;
  for (int slot = 0; slot <= kSlots; ++slot) {
    Tensor carries = arguments.carries[part.stack];
    Tensor matrices =
        slot == kSlots ? torch::stable::narrow(carries, 0, part.first, part.count)
                       : torch::stable::view(
                             torch::stable::narrow(batch.matrices, 0, offset + slot * size, size),
                             {part.count, part.d, part.d});
    batch.slots[slot].push_back(matrices);
    batch.transposed[slot].push_back(torch::stable::transpose(matrices, 1, 2));
  }
}

template <typename T>
void refresh_batch(const RefreshArguments& arguments, const RunPhase<T>& run, Batch<T>& batch) {
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
    measures += refresh_measures(part.count, part.d);
    largest = std::max(largest, part.d);
  }
  const auto launch = [&](Phase phase, RefreshCall call) { run(phase, batch.table, call); };
  const auto multiply = [&](Slot a, bool transposed, Slot b, Slot out) {
    call_grouped_matmul((transposed ? batch.transposed : batch.slots)[int(a)], batch.slots[int(b)],
                        batch.slots[int(out)]);
  };
  refresh_large<T>(static_cast<int>(largest), launch, multiply);
}

// Small factors: no workspace but their own, so that all stacks go together.
template <typename T>
void refresh_small(const RefreshArguments& arguments, const RunPhase<T>& run,
                   const std::vector<Part>& parts) {
  for (size_t first = 0; first < parts.size(); first += kMostStacks) {
    RefreshTable<T> table{};
    table.tolerance = arguments.tolerance;
    table.count = static_cast<int>(std::min<size_t>(kMostStacks, parts.size() - first));
    for (int p = 0; p < table.count; ++p) {
      table.stacks[p] = entry_of<T>(arguments, parts[first + p]);
    }
    run(Phase::kSmall, table, RefreshCall{kFirstTry, 0});
  }
}

// Parts that fit into the workspace together, the largest first: sizes that are near each other
// have nearly as many steps of a factorisation.
template <typename T>
std::vector<std::vector<Part>> rounds_of(std::vector<Part> parts) {
  std::stable_sort(parts.begin(), parts.end(),
                   [](const Part& a, const Part& b) { return a.d > b.d; });
  const int64_t room = kMostWorkspaceBytes / static_cast<int64_t>(sizeof(T));
  std::vector<std::vector<Part>> rounds;
  int64_t left = 0;
  for (Part part : parts) {
    while (part.count > 0) {
      const int64_t each = kSlots * part.d * part.d;
      if (rounds.empty() || left < each || rounds.back().size() == kMostStacks) {
        rounds.emplace_back();
        left = std::max(room, each);  // one factor goes through whatever its size
      }
      const int64_t count = std::min(part.count, left / each);
      rounds.back().push_back({part.stack, part.first, count, part.d});
      left -= count * each;
      part.first += count;
      part.count -= count;
    }
  }
  return rounds;
}

struct Parts {
  std::vector<Part> small, large;
};

Parts parts_of(const TensorList& factors, const TensorList& selections, ScalarType dtype,
               int64_t householder_up_to) {
  Parts parts;
  for (size_t s = 0; s < factors.size(); ++s) {
    const Part part{s, 0, selections[s].size(0), factors[s].size(1)};
    if (factors[s].scalar_type() != dtype || part.count == 0 || part.d == 0) continue;
    (part.d <= householder_up_to ? parts.small : parts.large).push_back(part);
  }
  return parts;
}

template <typename T>
void refresh_of_dtype(const RefreshArguments& arguments, ScalarType dtype,
                      int64_t householder_up_to, const RunPhase<T>& run) {
  const auto [small, large] =
      parts_of(arguments.factors, arguments.selections, dtype, householder_up_to);
  refresh_small(arguments, run, small);
  for (const std::vector<Part>& parts : rounds_of<T>(large)) {
    Batch<T> batch{};
    batch.parts = parts;
    refresh_batch(arguments, run, batch);
  }
}

TensorList contiguous(const TensorList& tensors) {
  TensorList result;
  for (const Tensor& tensor : tensors) result.push_back(torch::stable::contiguous(tensor));
  return result;
}

template <typename T>
int64_t launches_of(const Parts& parts) {
  int64_t launches = (parts.small.size() + kMostStacks - 1) / kMostStacks;
  for (const std::vector<Part>& round : rounds_of<T>(parts.large)) {
    const int largest = static_cast<int>(round.front().d);  // rounds begin with the largest
    refresh_large<T>(
        largest, [&](Phase, RefreshCall) { ++launches; },
        [&](Slot, bool, Slot, Slot) { ++launches; });
  }
  return launches;
}

}  // namespace

int64_t refresh_launches(TensorList factors, TensorList selections) {
  const auto parts = [&](ScalarType dtype) {
    return parts_of(factors, selections, dtype, kHouseholderUpTo);
  };
  return launches_of<float>(parts(ScalarType::Float)) +
         launches_of<double>(parts(ScalarType::Double));
}

void refresh_by_cholesky(const RefreshArguments& given, int64_t householder_up_to,
                         const RunPhase<float>& run_float, const RunPhase<double>& run_double) {
  check(householder_up_to >= 0 && householder_up_to <= kHouseholderUpTo,
        "refresh_: householder_up_to=", householder_up_to, " is outside [0, ", kHouseholderUpTo,
        "], the sizes that a warp can have");
  const TensorList factors = contiguous(given.factors), selections = contiguous(given.selections);
  const TensorList allowed = contiguous(given.allowed);
  const RefreshArguments arguments{factors,       given.bases,     selections,
                                   allowed,       given.tolerance, given.orders,
                                   given.carries, given.outcomes,  given.off_diagonals};
  refresh_of_dtype(arguments, ScalarType::Float, householder_up_to, run_float);
  refresh_of_dtype(arguments, ScalarType::Double, householder_up_to, run_double);
}

}  // namespace soap_fast
