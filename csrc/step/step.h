// step_: one step of all tensors on the CPU, in one call. soap_fast/backends/cpu_step.py fills its
// tables.
#pragma once

#include <algorithm>

#include "common.h"

namespace soap_fast {

// Of gradients and parameters; state is float32.
enum class StepDtype : int64_t { kFloat, kBFloat16, kHalf };

// One row of `tensors` [n, .] int64: a tensor of the step. Addresses are of float32 where nothing
// else is said.
//
// Its elements lie as a plane [fold, batch, d_1 .. d_k]: the folded modes joined, those without a
// factor joined, then the modes that products rotate.
struct StepTensor {
  int64_t param, grad, exp_avg, exp_avg_sq, step;  // addresses; grad 0: it takes no part
  int64_t skipped;                                 // address of int64
  int64_t fold, batch;                             // sizes, 1 where there are none
  int64_t folded, products;                        // how many modes
  int64_t first_mode;                              // row of `modes`: the folded ones, the others
  int64_t first_walk;                              // row of `walks`, see elements.h
  int64_t grad_rows, grad_fold, param_rows, param_fold;  // axes of each, in this order
  int64_t grad_dtype, param_dtype;                       // see StepDtype
};

// One row of `modes` [., 3] int64.
struct StepMode {
  int64_t size, basis, factor;  // addresses of [d, d], row-major
};

// One row of `walks` [., 2] int64: an axis of a strided tensor, innermost first.
struct StepAxis {
  int64_t size, stride;  // elements
};

// One row of `options` [n, .] float64.
struct StepOptions {
  double lr, beta1, beta2, beta_s, eps, weight_decay, correct_bias, normalize, inverse_scale,
      found_inf, noise;  // noise: noise_scale of soap_fast/step/rounding.py
};

// One row of `tensors` [n, .] int64 of carry_: moments, a plane as in a step.
struct CarryTensor {
  int64_t exp_avg, exp_avg_sq;      // addresses
  int64_t taken;                    // address of bool: whether the tensor took its step
  int64_t refreshes, off_diagonal;  // addresses of [3] int64 and of [modes] float32
  int64_t fold, batch, folded, products, first_mode;
};

// One row of its `modes` [., 6] int64: what a refresh made of a basis.
struct CarryMode {
  int64_t size, number;    // number of the mode in off_diagonal
  int64_t carry, order;    // addresses of [d, d] float32 and [d] int64; 0 where none was due
  int64_t outcome, share;  // addresses of int64, an Outcome, and of float32
};

// Of tensors that took their step: outcomes are counted, shares kept, and where a basis was
// refreshed moments follow, exp_avg = Cᵀ exp_avg along every mode, exp_avg_sq permuted. `workspace`
// as that of step_.
void carry_cpu(Tensor tensors, Tensor modes, Tensor workspace);

// Args:
//   tensors, options, modes, walks: rows of these structs.
//   workspace: [threads, .] float32, step_workspace of the tensor that needs most a thread.
//   taken: [n] bool, whether each tensor took the step; written.
void step_cpu(Tensor tensors, Tensor options, Tensor modes, Tensor walks, Tensor workspace,
              Tensor taken);

// Whether step_ can run: it calls torch's BLAS directly.
bool has_step();

// Rows of a table, whose columns are the members of a struct.
template <typename Row, typename Element>
const Row* rows_of(const Tensor& table, const char* name, torch::headeronly::ScalarType dtype) {
  static_assert(sizeof(Row) % sizeof(Element) == 0, "a struct of nothing else");
  const int64_t columns = sizeof(Row) / sizeof(Element);
  check(table.dim() == 2 && table.size(1) == columns && table.scalar_type() == dtype &&
            table.is_contiguous(),
        name, " is not a contiguous table of ", columns, " columns of its dtype");
  return reinterpret_cast<const Row*>(table.const_data_ptr<Element>());
}

constexpr int64_t kFold = 32;  // folded modes at most

// Elements of workspace that a tensor of `numel` elements needs: two planes, two matrices [fold,
// fold], and room for `copied` elements of a factor or basis that is not aligned.
constexpr int64_t step_workspace(int64_t numel, int64_t copied) {
  return 2 * ((numel + 15) / 16 * 16) + 2 * kFold * kFold + (copied + 15) / 16 * 16;
}

// The largest of these products' matrices, in elements; 0 without any. Whatever its size, one that
// another process sent lies anywhere.
template <typename Mode>
int64_t copied_elements(const Mode* products, int64_t count) {
  int64_t most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, products[i].size * products[i].size);
  return most;
}

}  // namespace soap_fast
