// refresh_ on CUDA, torch's side: the device and its stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "cuda/streams.h"
#include "refresh/by_cholesky.h"
#include "refresh/phases/sequence.h"

namespace soap_fast {

namespace {

void refresh_on(void* stream, const RefreshArguments& arguments, int64_t householder_up_to,
                const Launched& launched) {
  const auto run = [stream](Phase phase, const auto& table, RefreshCall call) {
    const char* error = launch_refresh(phase, table, call, stream);
    check(error == nullptr, "refresh_: a CUDA kernel did not start: ", error ? error : "");
  };
  refresh_by_cholesky(arguments, householder_up_to, run, run, launched);
}

}  // namespace

void refresh_by_cholesky_cuda(TensorList factors, TensorList bases, TensorList selections,
                              TensorList allowed, double tolerance, TensorList orders,
                              TensorList carries, TensorList outcomes, TensorList off_diagonals,
                              int64_t householder_up_to, Lent workspace) {
  const RefreshArguments arguments{factors, bases,   selections, allowed,       tolerance,
                                   orders,  carries, outcomes,   off_diagonals, workspace};
  check_refresh(arguments);
  const int32_t device = factors[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  refresh_on(current_cuda_stream(device), arguments, householder_up_to, [] {});
}

std::vector<double> refresh_times_cuda(TensorList factors, TensorList bases, TensorList selections,
                                       TensorList allowed, double tolerance, TensorList orders,
                                       TensorList carries, TensorList outcomes,
                                       TensorList off_diagonals, int64_t householder_up_to,
                                       Lent workspace) {
  const RefreshArguments arguments{factors, bases,   selections, allowed,       tolerance,
                                   orders,  carries, outcomes,   off_diagonals, workspace};
  check_refresh(arguments);
  const int32_t device = factors[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  StreamClock clock(current_cuda_stream(device));
  refresh_on(current_cuda_stream(device), arguments, householder_up_to, [&] { clock.mark(); });
  return clock.microseconds();
}

void refresh_cuda(TensorList factors, TensorList bases, TensorList selections, TensorList allowed,
                  double tolerance, TensorList orders, TensorList carries, TensorList outcomes,
                  TensorList off_diagonals, Lent workspace) {
  refresh_by_cholesky_cuda(factors, bases, selections, allowed, tolerance, orders, carries,
                           outcomes, off_diagonals, kHouseholderUpTo, workspace);
}

}  // namespace soap_fast
