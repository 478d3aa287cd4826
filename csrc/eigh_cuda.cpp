// eigh on CUDA, torch's side: memory, the stream; small factors by our own kernel, the others
// solved between two of ours.
#include "eigh_cuda.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "current_stream.h"
#include "eigh.h"
#include "eigh_jacobi.h"

namespace soap_fast {
namespace {

void check_launch(const char* error) {
  check(error == nullptr, "eigh: a CUDA kernel did not start: ", error ? error : "");
}

template <typename T>
Matrices<T> matrices_of(const Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

template <typename T>
void solve_stack(const Tensor& stack, const Tensor& selection, const Tensor& eigenvalues,
                 const Tensor& bases, void* stream) {
  const int64_t n = stack.size(0), d = stack.size(1), k = selection.size(0);
  const Selection indices{selection.const_data_ptr<int32_t>(), selection.stride(0), k, n};
  if (d <= kJacobiLargest) {
    check_launch(launch_eigh_jacobi(matrices_of<T>(stack), indices, d,
                                    eigenvalues.mutable_data_ptr<T>(), bases.mutable_data_ptr<T>(),
                                    stream));
    return;
  }
  const Tensor scales = torch::stable::new_empty(stack, {k});
  const Tensor packed = torch::stable::new_empty(stack, {k, d, d});
  check_launch(launch_eigh_pack(matrices_of<T>(stack), indices, d, scales.mutable_data_ptr<T>(),
                                packed.mutable_data_ptr<T>(), stream));
  const Eigenpairs pairs = solve(packed);
  check_launch(launch_eigh_unpack(
      pairs.values.const_data_ptr<T>(), matrices_of<T>(pairs.vectors), scales.const_data_ptr<T>(),
      k, d, eigenvalues.mutable_data_ptr<T>(), bases.mutable_data_ptr<T>(), stream));
}

}  // namespace

Eigh eigh_cuda(TensorList factors, TensorList selections) {
  check_arguments(factors, selections);
  const int32_t device = factors[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = current_cuda_stream(device);

  Eigh results;
  auto& [eigenvalues, bases] = results;
  for (size_t s = 0; s < factors.size(); ++s) {
    const auto [stack_values, stack_bases] = new_results(factors[s], selections[s]);
    eigenvalues.push_back(stack_values);
    bases.push_back(stack_bases);
    if (stack_bases.numel() == 0) continue;
    const bool wide = factors[s].scalar_type() == torch::headeronly::ScalarType::Double;
    const auto solve_as = wide ? solve_stack<double> : solve_stack<float>;
    solve_as(factors[s], selections[s], stack_values, stack_bases, stream);
  }
  return results;
}

}  // namespace soap_fast
