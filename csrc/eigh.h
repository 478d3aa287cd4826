// eigh: first bases of all factors in one call. soap_fast/eigh.py defines the operator.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <tuple>
#include <vector>

namespace soap_fast {

using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;

// STD_TORCH_CHECK would put the file and line of our source before the sentence.
template <typename... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

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
