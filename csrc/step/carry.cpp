// carry_ on the CPU: moments of tensors whose bases were refreshed.
#include <algorithm>
#include <vector>

#include "refresh/phases/outcome.h"
#include "step/elements.h"
#include "step/modes.h"
#include "workers.h"

namespace soap_fast {
namespace {

using torch::headeronly::ScalarType;

// An axis of a plane, and where each of its elements comes from.
struct Source {
  int64_t size;
  const int64_t* order;  // nullptr for the identity

  int64_t at(int64_t index) const { return order ? order[index] : index; }
};

// to[i_1, .., i_k] = from[order_1[i_1], .., order_k[i_k]], the last axis contiguous.
void permute(const std::vector<Source>& axes, const float* from, float* to) {
  const Source inner = axes.back();
  int64_t rows = 1;
  for (size_t axis = 0; axis + 1 < axes.size(); ++axis) rows *= axes[axis].size;
  for (int64_t row = 0; row < rows; ++row, to += inner.size) {
    int64_t source = 0, rest = row, stride = 1;
    for (size_t axis = axes.size() - 1; axis-- > 0; rest /= axes[axis].size) {
      source += axes[axis].at(rest % axes[axis].size) * stride;
      stride *= axes[axis].size;
    }
    const float* found = from + source * inner.size;
    for (int64_t i = 0; i < inner.size; ++i) to[i] = found[inner.at(i)];
  }
}

// Counts what became of the bases; returns whether one was refreshed.
bool count(const CarryTensor& tensor, const CarryMode* first, const CarryMode* last) {
  bool refreshed = false;
  for (const CarryMode* mode = first; mode != last; ++mode) {
    if (mode->outcome == 0) continue;
    const int64_t outcome = *at<const int64_t>(mode->outcome);
    if (outcome == int64_t(Outcome::kLeftOut)) continue;
    ++at<int64_t>(tensor.refreshes)[outcome - 1];
    at<float>(tensor.off_diagonal)[mode->number] = *at<const float>(mode->share);
    refreshed |= outcome == int64_t(Outcome::kRefreshed);
  }
  return refreshed;
}

int64_t numel_of(const CarryTensor& tensor, const CarryMode* modes) {
  int64_t numel = tensor.batch;
  for (int64_t i = 0; i < tensor.folded + tensor.products; ++i) {
    numel *= modes[tensor.first_mode + i].size;
  }
  return numel;
}

void carry_tensor(const CarryTensor& tensor, const CarryMode* modes, float* workspace) {
  if (!*at<const bool>(tensor.taken)) return;
  const CarryMode* folded = modes + tensor.first_mode;
  const CarryMode* last = folded + tensor.folded + tensor.products;
  if (!count(tensor, folded, last)) return;
  std::vector<Source> axes;
  std::vector<StepMode> matrices;  // carrying ones, as rotate() and join() read bases
  const int64_t numel = numel_of(tensor, modes);
  for (const CarryMode* mode = folded; mode != last; ++mode) {
    if (mode == folded + tensor.folded) axes.push_back({tensor.batch, nullptr});
    axes.push_back({mode->size, at<const int64_t>(mode->order)});
    matrices.push_back({mode->size, mode->carry, 0});
  }
  if (tensor.products == 0) axes.push_back({tensor.batch, nullptr});  // behind the fold
  const int64_t padded = (numel + 15) / 16 * 16, fold = tensor.fold, rows = numel / fold;
  Planes planes{workspace, workspace + padded};
  float* room = workspace + step_workspace(numel, 0);

  float* exp_avg_sq = at<float>(tensor.exp_avg_sq);
  permute(axes, exp_avg_sq, planes.now);
  std::copy_n(planes.now, numel, exp_avg_sq);

  float* exp_avg = at<float>(tensor.exp_avg);
  std::copy_n(exp_avg, numel, planes.now);
  if (fold > 1) {
    float* joint = workspace + 2 * padded;
    join(matrices.data(), tensor.folded, fold, joint);
    rotate_fold(true, fold, rows, joint, planes.now, planes.other);
    planes.swap();
  }
  const StepMode* products = matrices.data() + tensor.folded;
  for (int64_t i = 0; i < tensor.products; ++i) {
    if (products[i].basis == 0) continue;
    rotate(axis_of(fold * tensor.batch, products, tensor.products, i),
           at<const float>(products[i].basis), false, planes.now, planes.other, room);
    planes.swap();
  }
  for (int64_t i = 0; i < numel; ++i) exp_avg[i] = exp_avg_sq[i] == 0 ? 0 : planes.now[i];
}

}  // namespace

void carry_cpu(Tensor tensors, Tensor modes, Tensor workspace) {
  const auto* tensor = rows_of<CarryTensor, int64_t>(tensors, "carry_: tensors", ScalarType::Long);
  const auto* mode = rows_of<CarryMode, int64_t>(modes, "carry_: modes", ScalarType::Long);
  check(workspace.dim() == 2 && workspace.scalar_type() == ScalarType::Float &&
            workspace.is_contiguous(),
        "carry_: the workspace is not a contiguous [threads, elements] of float32");
  float* memory = workspace.mutable_data_ptr<float>();
  const int64_t threads = workspace.size(0), elements = workspace.size(1);
  const int64_t n = tensors.size(0);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t copied =
        copied_elements(mode + tensor[i].first_mode + tensor[i].folded, tensor[i].products);
    const int64_t needed = step_workspace(numel_of(tensor[i], mode), copied);
    check(tensor[i].fold <= kFold && needed <= elements, "carry_: tensor ", i,
          " does not fit in a workspace of ", elements, " elements a thread");
  }
  share_out(0, n, threads, [&](int64_t i, int64_t thread) {
    carry_tensor(tensor[i], mode, memory + thread * elements);
  });
}

}  // namespace soap_fast
