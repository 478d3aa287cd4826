// step_ on the CPU: tensors are shared out among torch's threads, each whole on one of them.
#include <algorithm>
#include <numeric>

#include "linalg/dense.h"
#include "step/tensor.h"
#include "workers.h"

namespace soap_fast {

namespace {
// Of a tensor whose products are shared out among threads. One of 0.3 GFLOP, [96, 96, 5, 5], takes
// two threads 2.7 ms and one 2.9, one of 0.7 GFLOP 4.8 and 6.0 (an idle Intel Xeon). Where other
// processes run, threads wait for each other at every product: 830 ms were seen in place of 10.
constexpr int64_t kSharedFlops = 500'000'000;
}  // namespace

bool has_step() { return has_gemm(); }

void step_cpu(Tensor tensors, Tensor options, Tensor modes, Tensor walks, Tensor workspace,
              Tensor taken) {
  using torch::headeronly::ScalarType;
  check(has_step(), "step_: torch's BLAS cannot be called directly here");
  const auto* tensor = rows_of<StepTensor, int64_t>(tensors, "step_: tensors", ScalarType::Long);
  const auto* option = rows_of<StepOptions, double>(options, "step_: options", ScalarType::Double);
  const auto* mode = rows_of<StepMode, int64_t>(modes, "step_: modes", ScalarType::Long);
  const auto* walk = rows_of<StepAxis, int64_t>(walks, "step_: walks", ScalarType::Long);
  const int64_t n = tensors.size(0);
  check(options.size(0) == n && taken.size(0) == n && taken.scalar_type() == ScalarType::Bool,
        "step_: options and taken need a row for each of ", n, " tensors");
  check(workspace.dim() == 2 && workspace.scalar_type() == ScalarType::Float &&
            workspace.is_contiguous(),
        "step_: the workspace is not a contiguous [threads, elements] of float32");
  bool* flags = taken.mutable_data_ptr<bool>();
  float* memory = workspace.mutable_data_ptr<float>();
  const int64_t threads = workspace.size(0), elements = workspace.size(1);

  // The most work first.
  std::vector<int64_t> order(n), flops(n);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t copied =
        copied_elements(mode + tensor[i].first_mode + tensor[i].folded, tensor[i].products);
    const int64_t needed = step_workspace(step_numel(tensor[i], mode), copied);
    check(tensor[i].fold <= kFold && needed <= elements, "step_: tensor ", i,
          " does not fit in a workspace of ", elements, " elements a thread");
    flops[i] = step_flops(tensor[i], mode);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return flops[a] > flops[b]; });
  const auto run = [&](int64_t piece, int64_t thread) {
    const int64_t i = order[piece];
    flags[i] = tensor[i].grad != 0 &&
               step_tensor(tensor[i], option[i], mode, walk, memory + thread * elements);
  };

  // What is more than a thread's share goes first, by all threads of the BLAS, if it is worth it.
  int64_t first = 0, left = std::accumulate(flops.begin(), flops.end(), int64_t(0));
  const auto is_shared = [&](int64_t found) {
    return found * threads > left && found >= kSharedFlops;
  };
  for (; first < n && threads > 1 && is_shared(flops[order[first]]); ++first) {
    left -= flops[order[first]];
    run(first, 0);
  }
  share_out(first, n, threads, run);
}

}  // namespace soap_fast
