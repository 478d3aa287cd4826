// csrc/cuda/cusolver.h against NVIDIA's own headers. .ci/check_cuda.sh compiles this and links it
// with the real library, so that a function that is not there is an error.
#include <cusolverDn.h>

#include <type_traits>

#include "cuda/cusolver.h"

using soap_fast::CuSolver;

namespace {

// A type as our declarations have it: enums are ints, what only NVIDIA knows is void.
template <typename T, typename = void>
struct Ours {
  using type = T;
};
template <typename T>
struct Ours<T, std::enable_if_t<std::is_enum_v<T>>> {
  static_assert(sizeof(T) == sizeof(int));
  using type = int;
};
template <typename T>
struct Ours<T*> {
  using type = std::conditional_t<std::is_class_v<T>, void*, typename Ours<T>::type*>;
};
template <typename Result, typename... Arguments>
struct Ours<Result (*)(Arguments...)> {
  using type = typename Ours<Result>::type (*)(typename Ours<Arguments>::type...);
};

template <auto theirs, typename Declared>
constexpr void* agreeing(Declared CuSolver::*) {
  static_assert(std::is_same_v<typename Ours<decltype(theirs)>::type, Declared>);
  return nullptr;
}

static_assert(soap_fast::kCuSolverSuccess == CUSOLVER_STATUS_SUCCESS);
static_assert(soap_fast::kEigenvectors == CUSOLVER_EIG_MODE_VECTOR);
static_assert(soap_fast::kUpperTriangle == CUBLAS_FILL_MODE_UPPER);
static_assert(soap_fast::kFloat32 == CUDA_R_32F && soap_fast::kFloat64 == CUDA_R_64F);

constexpr int kFunctions = 5;
static_assert(sizeof(CuSolver) == kFunctions * sizeof(void*), "add the new one below");

}  // namespace

#define LINKED(name) (agreeing<&name>(&CuSolver::name), reinterpret_cast<void*>(&name))

void* const functions[kFunctions] = {
    LINKED(cusolverDnCreate), LINKED(cusolverDnSetStream), LINKED(cusolverDnCreateParams),
    LINKED(cusolverDnXsyevBatched_bufferSize), LINKED(cusolverDnXsyevBatched)};
