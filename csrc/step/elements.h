// Passes over the elements of one tensor: gradients into planes, Adam, directions into parameters.
#pragma once

#include "step/step.h"

namespace soap_fast {

// A strided tensor as a plane [fold, rows]: axes of its rows and of its fold, innermost first.
struct Strided {
  const StepAxis *rows, *fold;
  int64_t row_axes, fold_axes;
};

// plane [fold, rows] = scale · source, which lies at an address. Returns the sum of its squares.
double gather_plane(StepDtype dtype, int64_t source, const Strided& strided, int64_t fold,
                    int64_t rows, float scale, float* plane);

// out [fold, rows] = M x, or Mᵀ x where `transpose`; M [fold, fold], x [fold, rows].
void rotate_fold(bool transpose, int64_t fold, int64_t rows, const float* matrix, const float* x,
                 float* out);

// gram [fold, fold] = x xᵀ.
void gram_fold(int64_t fold, int64_t rows, const float* x, float* gram);

// target -= size · plane, then target -= decay · target, at an address; rounded once.
void apply_plane(const float* plane, const Strided& strided, int64_t fold, int64_t rows, float size,
                 float decay, StepDtype dtype, int64_t target);

// m = beta1 m + (1 - beta1) g ; v = beta2 v + (1 - beta2) g² ; g = m / (sqrt(v) + eps), 0 where
// both are 0 and where sqrt(v) < floor. Returns the sum of the squares of the new g.
double adam(int64_t n, double beta1, double beta2, float eps, float floor, float* exp_avg,
            float* exp_avg_sq, float* g);

}  // namespace soap_fast
