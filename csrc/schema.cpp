// The operators of the library soap_fast: schemas and registrations, nothing else.
#include <torch/csrc/stable/library.h>

#include "eigh/eigh.h"
#include "linalg/grouped_matmul.h"
#include "refresh/refresh.h"
#include "refresh/rounds.h"
#include "step/step.h"

STABLE_TORCH_LIBRARY(soap_fast, library) {
  library.def(
      "eigh(Tensor[] factors, Tensor[] selections) -> (Tensor[] eigenvalues, Tensor[] bases)");
  library.def(
      // Results are arguments: torch.compile knows no operator that changes and returns lists.
      "refresh_(Tensor[] factors, Tensor(a!)[] bases, Tensor[] selections, Tensor[] allowed, "
      "float tolerance, Tensor(b!)[] orders, Tensor(c!)[] carries, Tensor(d!)[] outcomes, "
      "Tensor(e!)[] off_diagonals, Tensor(f!)? workspace=None) -> ()");
  library.def(
      "refresh_by_cholesky_(Tensor[] factors, Tensor(a!)[] bases, Tensor[] selections, "
      "Tensor[] allowed, float tolerance, Tensor(b!)[] orders, Tensor(c!)[] carries, "
      "Tensor(d!)[] outcomes, Tensor(e!)[] off_diagonals, int householder_up_to, "
      "Tensor(f!)? workspace=None) -> ()");
  library.def(
      "refresh_times_(Tensor[] factors, Tensor(a!)[] bases, Tensor[] selections, "
      "Tensor[] allowed, float tolerance, Tensor(b!)[] orders, Tensor(c!)[] carries, "
      "Tensor(d!)[] outcomes, Tensor(e!)[] off_diagonals, int householder_up_to, "
      "Tensor(f!)? workspace=None) -> float[]");
  library.def("carry_(Tensor tensors, Tensor modes, Tensor(a!) workspace) -> ()");
  library.def("has_step() -> bool");
  library.def(
      "refresh_plan(int[] sizes, int[] counts, int element_bytes, int lent_bytes=0) -> int[]");
  library.def(
      // Memory is named by address in `tensors`; the arguments that change are at the end.
      "step_(Tensor tensors, Tensor options, Tensor modes, Tensor walks, Tensor(a!) workspace, "
      "Tensor(b!) taken) -> ()");
  library.def(
      "grouped_matmul_(Tensor[] a, Tensor[] b, Tensor(a!)[] products, "
      "int structure=0) -> ()");
  library.def(
      // Matrices are named by address in `groups`, on the host.
      "grouped_matmul_at_(Tensor(a!) memory, Tensor groups, int structure=0) -> ()");
  library.def(
      "grouped_matmul_as_tensors_(Tensor(a!) memory, Tensor groups, int structure=0) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(soap_fast, CPU, library) {
  library.impl("eigh", TORCH_BOX(&soap_fast::eigh_cpu));
  library.impl("refresh_", TORCH_BOX(&soap_fast::refresh_cpu));
  library.impl("refresh_by_cholesky_", TORCH_BOX(&soap_fast::refresh_by_cholesky_cpu));
  library.impl("refresh_times_", TORCH_BOX(&soap_fast::refresh_times_cpu));
  library.impl("step_", TORCH_BOX(&soap_fast::step_cpu));
  library.impl("carry_", TORCH_BOX(&soap_fast::carry_cpu));
}

#ifdef SOAP_FAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(soap_fast, CUDA, library) {
  library.impl("eigh", TORCH_BOX(&soap_fast::eigh_cuda));
  library.impl("refresh_", TORCH_BOX(&soap_fast::refresh_cuda));
  library.impl("refresh_by_cholesky_", TORCH_BOX(&soap_fast::refresh_by_cholesky_cuda));
  library.impl("refresh_times_", TORCH_BOX(&soap_fast::refresh_times_cuda));
}
#endif

// Called for devices without a kernel, and for empty lists, which name no device.
STABLE_TORCH_LIBRARY_IMPL(soap_fast, CompositeExplicitAutograd, library) {
  library.impl("eigh", TORCH_BOX(&soap_fast::eigh_elsewhere));
  library.impl("refresh_", TORCH_BOX(&soap_fast::refresh_elsewhere));
  library.impl("has_step", TORCH_BOX(&soap_fast::has_step));
  library.impl("refresh_plan", TORCH_BOX(&soap_fast::refresh_plan));
  // A kernel registered for a device, such as a fused one, comes before these. What it does not
  // serve, it hands to grouped_matmul_as_tensors_.
  library.impl("grouped_matmul_", TORCH_BOX(&soap_fast::grouped_matmul));
  library.impl("grouped_matmul_at_", TORCH_BOX(&soap_fast::grouped_matmul_as_tensors));
  library.impl("grouped_matmul_as_tensors_", TORCH_BOX(&soap_fast::grouped_matmul_as_tensors));
}
