// eigh on CUDA, torch's side: small factors by our own kernel, larger ones by cuSOLVER, and by
// torch's solver what those leave.
#include "eigh/cuda.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "cuda/streams.h"
#include "eigh/by_jacobi.h"

namespace soap_fast {
namespace {

template <typename T>
void launch_small(const StackCall& call, void* stream) {
  check_launch(launch_eigh_jacobi(matrices_of<T>(call.stack), call.part(0, call.k()), call.d(),
                                  call.eigenvalues_from<T>(0), call.bases_from<T>(0), stream));
}

// By torch's solver, which may wait for the device.
template <typename T>
void solve_leftover(const StackCall& call, const Leftover& left, void* stream) {
  const int64_t d = call.d();
  const Tensor scales = torch::stable::new_empty(call.stack, {left.count});
  const Tensor places =
      torch::stable::new_empty(call.stack, {left.count, d + 1}, torch::headeronly::ScalarType::Int);
  const Tensor packed = torch::stable::new_empty(call.stack, {left.count, d, d});
  check_launch(launch_eigh_pack(matrices_of<T>(call.stack), call.part(left.first, left.count), d,
                                scales.mutable_data_ptr<T>(), places.mutable_data_ptr<int32_t>(),
                                packed.mutable_data_ptr<T>(), stream));
  const Eigenpairs pairs = left.failed ? solve_in_float64(packed) : solve(packed);
  const Solution<T> solution{pairs.values.const_data_ptr<T>(), matrices_of<T>(pairs.vectors),
                             nullptr};
  check_launch(launch_eigh_unpack(
      solution, scales.const_data_ptr<T>(), places.const_data_ptr<int32_t>(), left.count, d,
      call.eigenvalues_from<T>(left.first), call.bases_from<T>(left.first), nullptr, stream));
}

}  // namespace

Eigh eigh_cuda(TensorList factors, TensorList selections) {
  check_arguments(factors, selections);
  const int32_t device = factors[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = current_cuda_stream(device);

  Eigh results;
  std::vector<StackCall> large;
  for (size_t s = 0; s < factors.size(); ++s) {
    const auto [values, bases] = new_results(factors[s], selections[s]);
    std::get<0>(results).push_back(values);
    std::get<1>(results).push_back(bases);
    const StackCall call{factors[s], selections[s], values, bases};
    check(call.k() <= INT32_MAX, "eigh: selections[", s, "] selects ", call.k(),
          " factors, more than a launch has blocks; split it");
    if (bases.numel() == 0) continue;
    if (call.d() > kJacobiLargest) {
      large.push_back(call);
    } else {
      (call.is_wide() ? launch_small<double> : launch_small<float>)(call, stream);
    }
  }
  for (const Leftover& left : eigh_cusolver(large, stream)) {
    const StackCall& call = large[left.call];
    (call.is_wide() ? solve_leftover<double> : solve_leftover<float>)(call, left, stream);
  }
  return results;
}

}  // namespace soap_fast
