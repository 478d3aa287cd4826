// refresh_ on the CPU: one factor per worker.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>

#include "refresh/factor.h"
#include "refresh/refresh.h"
#include "workers.h"

namespace soap_fast {
namespace {

using torch::headeronly::ScalarType;

// From this size on factors are refreshed one after another with BLAS's own threads; see
// eigh/cpu.cpp for what speaks against it below.
constexpr int64_t kBlasThreadsFrom = 2048;

// One factor of one stack, and where its results go.
struct Task {
  size_t stack;
  int64_t position;  // in the selection
  int64_t slot;      // in the stack
  int64_t d;
};

std::vector<Task> plan(const TensorList& factors, const TensorList& selections) {
  std::vector<Task> tasks;
  for (size_t s = 0; s < factors.size(); ++s) {
    const int64_t n = factors[s].size(0), d = factors[s].size(1), k = selections[s].size(0);
    const int32_t* indices = selections[s].const_data_ptr<int32_t>();
    std::vector<bool> seen(n, false);
    for (int64_t i = 0; i < k; ++i) {
      const int64_t slot = indices[i * selections[s].stride(0)];
      check(slot >= 0 && slot < n, "refresh_: selections[", s, "][", i, "]=", slot,
            " is outside [0, ", n, "), the indices of factors[", s, "]");
      check(!seen[slot], "refresh_: selections[", s, "] names ", slot,
            " twice; a basis can be refreshed once in a call");
      seen[slot] = true;
      if (d > 0) tasks.push_back({s, i, slot, d});
    }
  }
  // Largest first.
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.d > b.d; });
  return tasks;
}

template <typename T>
void refresh_task(const RefreshArguments& all, const Task& task, Scratch& scratch) {
  const int64_t i = task.position, d = task.d;
  const Tensor &factors = all.factors[task.stack], &allowed = all.allowed[task.stack];
  const FactorView<T> factor{factors.const_data_ptr<T>() + task.slot * factors.stride(0),
                             factors.stride(1), factors.stride(2)};
  T* basis = all.bases[task.stack].mutable_data_ptr<T>() + task.slot * d * d;
  const FactorResult<T> result{
      all.orders[task.stack].mutable_data_ptr<int64_t>() + i * d,
      all.carries[task.stack].mutable_data_ptr<T>() + i * d * d,
      !all.carries[task.stack].is_contiguous(),
      all.outcomes[task.stack].mutable_data_ptr<int64_t>() + i,
      all.off_diagonals[task.stack].mutable_data_ptr<T>() + i,
  };
  if (allowed.const_data_ptr<bool>()[i * allowed.stride(0)]) {
    refresh_factor(d, factor, basis, all.tolerance, result, scratch);
  } else {
    *result.off_diagonal = std::numeric_limits<T>::quiet_NaN();
    leave_factor(d, Outcome::kLeftOut, result);
  }
}

}  // namespace

void refresh_cpu(TensorList factors, TensorList bases, TensorList selections, TensorList allowed,
                 double tolerance, TensorList orders, TensorList carries, TensorList outcomes,
                 TensorList off_diagonals) {
  check_refresh(factors, bases, selections, allowed, orders, carries, outcomes, off_diagonals);
  const RefreshArguments all{factors, bases,   selections, allowed,      tolerance,
                             orders,  carries, outcomes,   off_diagonals};
  const std::vector<Task> tasks = plan(factors, selections);
  const auto run = [&](const Task& task, Scratch& scratch) {
    const bool wide = factors[task.stack].scalar_type() == ScalarType::Double;
    (wide ? refresh_task<double> : refresh_task<float>)(all, task, scratch);
  };

  const int64_t end = static_cast<int64_t>(tasks.size()),
                workers = torch::stable::get_num_threads();
  std::vector<Scratch> scratches(workers);
  int64_t first = 0;
  for (; first < end && tasks[first].d >= kBlasThreadsFrom; ++first) {
    run(tasks[first], scratches[0]);
  }
  share_out(first, end, workers,
            [&](int64_t piece, int64_t worker) { run(tasks[piece], scratches[worker]); });
}

}  // namespace soap_fast
