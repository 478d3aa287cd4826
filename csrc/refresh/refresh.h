// refresh_: bases of all factors follow them, in one call. soap_fast/step/refresh.py defines the
// operator.
#pragma once

#include <optional>

#include "common.h"
#include "refresh/phases/outcome.h"

namespace soap_fast {

// Memory that the caller lends, flat; none where the operator takes its own.
using Lent = std::optional<Tensor>;

// One of each per stack, as the operator takes them.
struct RefreshArguments {
  const TensorList &factors, &bases, &selections, &allowed;
  double tolerance;
  const TensorList &orders, &carries, &outcomes, &off_diagonals;
  const Lent& workspace;

  // Whether bases[s] are those of the selection, in its order, and not of the whole stack.
  bool in_order(size_t s) const { return bases[s].size(0) != factors[s].size(0); }
};

// Everything that can be known without reading a selection's values.
void check_refresh(const RefreshArguments& arguments);

void refresh_cpu(TensorList factors, TensorList bases, TensorList selections, TensorList allowed,
                 double tolerance, TensorList orders, TensorList carries, TensorList outcomes,
                 TensorList off_diagonals, Lent workspace);
void refresh_cuda(TensorList factors, TensorList bases, TensorList selections, TensorList allowed,
                  double tolerance, TensorList orders, TensorList carries, TensorList outcomes,
                  TensorList off_diagonals, Lent workspace);

// For empty lists, which name no device, and devices without a kernel.
void refresh_elsewhere(TensorList factors, TensorList bases, TensorList selections,
                       TensorList allowed, double tolerance, TensorList orders, TensorList carries,
                       TensorList outcomes, TensorList off_diagonals, Lent workspace);

// refresh_by_cholesky_: the algorithm of CUDA, which runs on the CPU too.
void refresh_by_cholesky_cpu(TensorList factors, TensorList bases, TensorList selections,
                             TensorList allowed, double tolerance, TensorList orders,
                             TensorList carries, TensorList outcomes, TensorList off_diagonals,
                             int64_t householder_up_to, Lent workspace);
void refresh_by_cholesky_cuda(TensorList factors, TensorList bases, TensorList selections,
                              TensorList allowed, double tolerance, TensorList orders,
                              TensorList carries, TensorList outcomes, TensorList off_diagonals,
                              int64_t householder_up_to, Lent workspace);

// refresh_times_: the same, and how long each launch of it took, in microseconds and in the order
// of refresh_plan(). Waits for the device.
std::vector<double> refresh_times_cpu(TensorList factors, TensorList bases, TensorList selections,
                                      TensorList allowed, double tolerance, TensorList orders,
                                      TensorList carries, TensorList outcomes,
                                      TensorList off_diagonals, int64_t householder_up_to,
                                      Lent workspace);
std::vector<double> refresh_times_cuda(TensorList factors, TensorList bases, TensorList selections,
                                       TensorList allowed, double tolerance, TensorList orders,
                                       TensorList carries, TensorList outcomes,
                                       TensorList off_diagonals, int64_t householder_up_to,
                                       Lent workspace);

}  // namespace soap_fast
