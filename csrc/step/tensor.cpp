#include "step/tensor.h"

#include <algorithm>
#include <cmath>

#include "linalg/dense.h"
#include "step/elements.h"
#include "step/modes.h"

namespace soap_fast {
namespace {

// Rows of a Gram matrix that one product computes, with all columns up to its diagonal block: four
// bands compute 5/8 of the square where 1/2 is needed, and of 8 each product would be too thin.
constexpr int64_t kBands = 4, kLeastBand = 32;

// K = beta K + (1 - beta) x_(axis) x_(axis)ᵀ, below the diagonal and mirrored. `room` [d, d] for a
// K that is not aligned.
void follow(const Axis& axis, const float* x, double beta_s, float* factor, float* room) {
  const int64_t d = axis.d, after = axis.after;
  float* k = is_aligned(factor) ? factor : std::copy_n(factor, d * d, room) - d * d;
  const float beta = static_cast<float>(beta_s), alpha = static_cast<float>(1 - beta_s);
  const int64_t band = std::max(kLeastBand, (d + kBands - 1) / kBands);
  for (int64_t row = 0; row < d; row += band) {
    const int64_t height = std::min(band, d - row), width = row + height;
    float* target = k + row * d;
    if (after == 1) {
      gemm(true, false, height, width, axis.before, alpha, x + row, d, x, d, beta, target, d);
      continue;
    }
    for (int64_t b = 0; b < axis.before; ++b) {
      const float* plane = x + b * d * after;
      gemm(false, true, height, width, after, alpha, plane + row * after, after, plane, after,
           b == 0 ? beta : 1.0f, target, d);
    }
  }
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < i; ++j) k[j * d + i] = k[i * d + j];
  }
  if (k != factor) std::copy_n(k, d * d, factor);
}

// Factors of the folded modes: partial traces of the joint Gram matrix [fold, fold].
void follow_folded(const StepMode* folded, int64_t count, int64_t fold, const float* joint,
                   double beta_s) {
  int64_t inner = fold;
  for (int64_t m = 0; m < count; ++m) {
    const int64_t d = folded[m].size;
    inner /= d;
    float* k = at<float>(folded[m].factor);
    for (int64_t a = 0; a < d; ++a) {
      for (int64_t b = 0; b <= a; ++b) {
        double sum = 0;
        for (int64_t outer = 0; outer < fold; outer += d * inner) {
          for (int64_t i = 0; i < inner; ++i) {
            sum += joint[(outer + a * inner + i) * fold + outer + b * inner + i];
          }
        }
        const float entry = static_cast<float>(beta_s) * k[a * d + b] +
                            static_cast<float>(1 - beta_s) * static_cast<float>(sum);
        k[a * d + b] = k[b * d + a] = entry;
      }
    }
  }
}

// See soap_fast/step/rounding.py; 0 where no mode rotates.
float noise_floor(const StepTensor& tensor, const StepMode* modes, double noise) {
  if (tensor.folded + tensor.products == 0) return 0;
  const StepMode& mode = modes[tensor.first_mode];
  const float* k = at<const float>(mode.factor);
  double trace = 0;
  for (int64_t i = 0; i < mode.size; ++i) trace += k[i * mode.size + i];
  return static_cast<float>(noise * std::sqrt(trace));
}

}  // namespace

int64_t step_numel(const StepTensor& tensor, const StepMode* modes) {
  int64_t numel = tensor.fold * tensor.batch;
  for (int64_t i = 0; i < tensor.products; ++i) {
    numel *= modes[tensor.first_mode + tensor.folded + i].size;
  }
  return numel;
}

int64_t step_flops(const StepTensor& tensor, const StepMode* modes) {
  int64_t width = 3 * tensor.fold;
  for (int64_t i = 0; i < tensor.products; ++i) {
    width += 3 * modes[tensor.first_mode + tensor.folded + i].size;
  }
  return 2 * step_numel(tensor, modes) * (width + 16);  // 16 for the passes over elements
}

bool step_tensor(const StepTensor& tensor, const StepOptions& options, const StepMode* modes,
                 const StepAxis* walks, float* workspace) {
  const StepMode* folded = modes + tensor.first_mode;
  const StepMode* products = folded + tensor.folded;
  const int64_t fold = tensor.fold, before = fold * tensor.batch;
  const int64_t numel = step_numel(tensor, modes), rows = numel / fold,
                padded = (numel + 15) / 16 * 16;
  Planes planes{workspace, workspace + padded};
  float* basis = workspace + 2 * padded;  // [fold, fold]
  float* joint = basis + kFold * kFold;   // [fold, fold]
  float* room = joint + kFold * kFold;    // see step_workspace

  const StepAxis* axes = walks + tensor.first_walk;
  const Strided grad{axes, axes + tensor.grad_rows, tensor.grad_rows, tensor.grad_fold};
  axes += tensor.grad_rows + tensor.grad_fold;
  const Strided param{axes, axes + tensor.param_rows, tensor.param_rows, tensor.param_fold};

  const double squares = gather_plane(StepDtype(tensor.grad_dtype), tensor.grad, grad, fold, rows,
                                      static_cast<float>(options.inverse_scale), planes.now);
  const bool finite = std::isfinite(static_cast<float>(squares));
  if (!finite || options.found_inf != 0) {
    ++*at<int64_t>(tensor.skipped);
    return false;
  }
  const float step = *at<float>(tensor.step) += 1;

  // Factors, by the gradient as it is.
  for (int64_t i = 0; i < tensor.products; ++i) {
    follow(axis_of(before, products, tensor.products, i), planes.now, options.beta_s,
           at<float>(products[i].factor), room);
  }
  if (fold > 1) {
    gram_fold(fold, rows, planes.now, joint);
    follow_folded(folded, tensor.folded, fold, joint, options.beta_s);
    join(folded, tensor.folded, fold, basis);
    rotate_fold(true, fold, rows, basis, planes.now, planes.other);
    planes.swap();
  }
  const auto rotate_all = [&](bool back) {
    for (int64_t i = tensor.products; i-- > 0;) {
      rotate(axis_of(before, products, tensor.products, i), at<const float>(products[i].basis),
             back, planes.now, planes.other, room);
      planes.swap();
    }
  };

  rotate_all(false);
  const double direction =
      adam(numel, options.beta1, options.beta2, static_cast<float>(options.eps),
           noise_floor(tensor, modes, options.noise), at<float>(tensor.exp_avg),
           at<float>(tensor.exp_avg_sq), planes.now);
  rotate_all(true);
  if (fold > 1) {
    rotate_fold(false, fold, rows, basis, planes.now, planes.other);
    planes.swap();
  }

  double size = options.lr;
  if (options.correct_bias != 0) {
    const double bias1 = 1 - std::pow(options.beta1, step);
    size *= std::sqrt(1 - std::pow(options.beta2, step)) / bias1;
  }
  if (options.normalize != 0) size /= 1e-30 + std::sqrt(direction / numel);
  apply_plane(planes.now, param, fold, rows, static_cast<float>(size),
              static_cast<float>(options.lr * options.weight_decay), StepDtype(tensor.param_dtype),
              tensor.param);
  return true;
}

}  // namespace soap_fast
