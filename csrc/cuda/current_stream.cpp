// libtorch_cuda is not linked, so that one library of operators loads on a torch without CUDA too.
#include <dlfcn.h>

#include <stdexcept>

#include "cuda/streams.h"

namespace soap_fast {
namespace {

using CurrentStream = int32_t (*)(int32_t device_index, void** stream);

CurrentStream find_current_stream() {
  // A second handle on the library that torch has loaded; torch keeps its symbols out of the
  // global scope, so a plain dlsym would not see them.
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  if (!symbol)
    throw std::runtime_error("soap_fast: this torch has no CUDA; use a CUDA build of it");
  return reinterpret_cast<CurrentStream>(symbol);
}

}  // namespace

void* current_cuda_stream(int32_t device_index) {
  static const CurrentStream get = find_current_stream();
  void* stream = nullptr;
  if (get(device_index, &stream) != 0) {
    throw std::runtime_error("soap_fast: torch did not tell its current CUDA stream");
  }
  return stream;
}

}  // namespace soap_fast
