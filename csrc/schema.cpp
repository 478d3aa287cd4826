// The operators of the library soap_fast: schemas and registrations, nothing else.
#include <torch/csrc/stable/library.h>

#include "eigh.h"

STABLE_TORCH_LIBRARY(soap_fast, library) {
  library.def(
      "eigh(Tensor[] factors, Tensor[] selections) -> (Tensor[] eigenvalues, Tensor[] bases)");
}

STABLE_TORCH_LIBRARY_IMPL(soap_fast, CPU, library) {
  library.impl("eigh", TORCH_BOX(&soap_fast::eigh_cpu));
}

#ifdef SOAP_FAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(soap_fast, CUDA, library) {
  library.impl("eigh", TORCH_BOX(&soap_fast::eigh_cuda));
}
#endif

// Called for devices without a kernel, and for empty lists, which name no device.
STABLE_TORCH_LIBRARY_IMPL(soap_fast, CompositeExplicitAutograd, library) {
  library.impl("eigh", TORCH_BOX(&soap_fast::eigh_elsewhere));
}
