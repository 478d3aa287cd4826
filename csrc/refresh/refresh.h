// refresh_: bases of all factors follow them, in one call. soap_fast/step/refresh.py defines the
// operator.
#pragma once

#include "common.h"
#include "refresh/phases/outcome.h"

namespace soap_fast {

// One of each per stack, as the operator takes them.
struct RefreshArguments {
  const TensorList &factors, &bases, &selections, &allowed;
  double tolerance;
  const TensorList &orders, &carries, &outcomes, &off_diagonals;
};

// Everything that can be known without reading a selection's values.
void check_refresh(const TensorList& factors, const TensorList& bases, const TensorList& selections,
                   const TensorList& allowed, const TensorList& orders, const TensorList& carries,
                   const TensorList& outcomes, const TensorList& off_diagonals);

void refresh_cpu(TensorList factors, TensorList bases, TensorList selections, TensorList allowed,
                 double tolerance, TensorList orders, TensorList carries, TensorList outcomes,
                 TensorList off_diagonals);
void refresh_cuda(TensorList factors, TensorList bases, TensorList selections, TensorList allowed,
                  double tolerance, TensorList orders, TensorList carries, TensorList outcomes,
                  TensorList off_diagonals);

// For empty lists, which name no device, and devices without a kernel.
void refresh_elsewhere(TensorList factors, TensorList bases, TensorList selections,
                       TensorList allowed, double tolerance, TensorList orders, TensorList carries,
                       TensorList outcomes, TensorList off_diagonals);

// refresh_by_cholesky_: the algorithm of CUDA, which runs on the CPU too.
void refresh_by_cholesky_cpu(TensorList factors, TensorList bases, TensorList selections,
                             TensorList allowed, double tolerance, TensorList orders,
                             TensorList carries, TensorList outcomes, TensorList off_diagonals,
                             int64_t householder_up_to);
void refresh_by_cholesky_cuda(TensorList factors, TensorList bases, TensorList selections,
                              TensorList allowed, double tolerance, TensorList orders,
                              TensorList carries, TensorList outcomes, TensorList off_diagonals,
                              int64_t householder_up_to);

// refresh_times_: the same, and how long each launch of it took, in microseconds and in the order
// of refresh_plan(). Waits for the device.
std::vector<double> refresh_times_cpu(TensorList factors, TensorList bases, TensorList selections,
                                      TensorList allowed, double tolerance, TensorList orders,
                                      TensorList carries, TensorList outcomes,
                                      TensorList off_diagonals, int64_t householder_up_to);
std::vector<double> refresh_times_cuda(TensorList factors, TensorList bases, TensorList selections,
                                       TensorList allowed, double tolerance, TensorList orders,
                                       TensorList carries, TensorList outcomes,
                                       TensorList off_diagonals, int64_t householder_up_to);

}  // namespace soap_fast
