// eigh: first bases of all factors in one call. soap_fast/step/eigh.py defines the operator.
#pragma once

#include <tuple>

#include "common.h"

namespace soap_fast {

// Ascending, as LAPACK and cuSOLVER give them. A factor that nothing could solve has NaN values.
struct Eigenpairs {
  Tensor values;   // [c, d], contiguous
  Tensor vectors;  // [c, d, d], strides as torch chose them
};

// Everything that can be known without reading a selection's values.
void check_arguments(const TensorList& factors, const TensorList& selections);

// Eigenvalues [k, d] and bases [k, d, d] for one stack, uninitialised.
std::tuple<Tensor, Tensor> new_results(const Tensor& stack, const Tensor& selection);

// aten::linalg_eigh on packed [c, d, d]; if that throws, each factor alone, then in float64.
Eigenpairs solve(const Tensor& packed);

// For factors that failed in their own dtype: aten::linalg_eigh in float64. If that throws too,
// the values are NaN.
Eigenpairs solve_in_float64(const Tensor& packed);

// (eigenvalues, bases), one of each per stack.
using Eigh = std::tuple<TensorList, TensorList>;

Eigh eigh_cpu(TensorList factors, TensorList selections);
Eigh eigh_cuda(TensorList factors, TensorList selections);
Eigh eigh_elsewhere(TensorList factors, TensorList selections);

}  // namespace soap_fast
