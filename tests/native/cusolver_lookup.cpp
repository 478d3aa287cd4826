// find_cusolver among stand-ins for torch's libraries: found through a library that is linked with
// it, not before that is loaded, and not in a cuSOLVER that lacks a function.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#include "cuda/cusolver.h"

using namespace soap_fast;

namespace {

void load(const char* path) {
  if (dlopen(path, RTLD_NOW | RTLD_LOCAL)) return;
  std::printf("cusolver_lookup: %s\n", dlerror());
  std::exit(EXIT_FAILURE);
}

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("cusolver_lookup: FAILED: %s\n", what);
  std::exit(EXIT_FAILURE);
}

}  // namespace

int main(int count, char** arguments) {
  expect(count == 3, "takes the stand-ins: an old libtorch_cuda, and libtorch_cuda_linalg");
  expect(!find_cusolver(), "found before torch has loaded it");
  load(arguments[1]);
  expect(!find_cusolver(), "found without cusolverDnXsyevBatched");
  load(arguments[2]);
  const std::optional<CuSolver> found = find_cusolver();
  expect(found.has_value(), "not found");
  void* handle = nullptr;
  expect(found->cusolverDnCreate(&handle) == 42 && handle == &handle, "another function");
  std::puts("cusolver_lookup: good");
  return EXIT_SUCCESS;
}
