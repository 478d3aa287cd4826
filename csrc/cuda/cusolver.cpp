// cuSOLVER is neither linked nor loaded by us: torch's own copy is of its CUDA and beside its
// cuBLAS, and one library of operators serves every torch, with CUDA or without.
#include "cuda/cusolver.h"

#include <dlfcn.h>

#include <type_traits>

namespace soap_fast {
namespace {

// The library that torch links with cuSOLVER. dlsym searches a library's dependencies too, so that
// cuSOLVER's own file name, which changes with its version, is not needed. PyPI's builds keep
// linear algebra in a library that they load late, other builds in libtorch_cuda.
constexpr const char* kLinkedWithIt[] = {"libtorch_cuda_linalg.so", "libtorch_cuda.so"};

bool fill(void* library, CuSolver& functions) {
  bool complete = true;
  for_each_function([&](auto member, const char* name) {
    void* symbol = dlsym(library, name);
    complete = complete && symbol;
    functions.*member = reinterpret_cast<std::decay_t<decltype(functions.*member)>>(symbol);
  });
  return complete;
}

}  // namespace

std::optional<CuSolver> find_cusolver() {
  for (const char* name : kLinkedWithIt) {
    void* library = dlopen(name, RTLD_NOLOAD | RTLD_LAZY);
    CuSolver functions;
    if (library && fill(library, functions)) return functions;
    if (library) dlclose(library);
  }
  return std::nullopt;
}

}  // namespace soap_fast
