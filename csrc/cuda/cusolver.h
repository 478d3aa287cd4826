// The few functions of cuSOLVER that we call, found at run time in the copy that torch has loaded.
// Nothing here knows torch or CUDA's headers; .ci/check_cuda.sh holds the declarations to NVIDIA's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace soap_fast {

// Values of NVIDIA's enums.
constexpr int kCuSolverSuccess = 0;  // CUSOLVER_STATUS_SUCCESS
constexpr int kEigenvectors = 1;     // CUSOLVER_EIG_MODE_VECTOR
constexpr int kUpperTriangle = 1;    // CUBLAS_FILL_MODE_UPPER
constexpr int kFloat32 = 0;          // CUDA_R_32F
constexpr int kFloat64 = 1;          // CUDA_R_64F

// Handles, parameters and streams are pointers to what only NVIDIA knows; statuses and enums ints.
struct CuSolver {
  int (*cusolverDnCreate)(void** handle);
  int (*cusolverDnSetStream)(void* handle, void* stream);
  int (*cusolverDnCreateParams)(void** params);
  int (*cusolverDnXsyevBatched_bufferSize)(void* handle, void* params, int mode, int triangle,
                                           int64_t n, int matrix_type, const void* matrices,
                                           int64_t leading_dimension, int value_type,
                                           const void* values, int compute_type,
                                           size_t* device_bytes, size_t* host_bytes, int64_t count);
  int (*cusolverDnXsyevBatched)(void* handle, void* params, int mode, int triangle, int64_t n,
                                int matrix_type, void* matrices, int64_t leading_dimension,
                                int value_type, void* values, int compute_type, void* device_buffer,
                                size_t device_bytes, void* host_buffer, size_t host_bytes,
                                int* infos, int64_t count);
};

// Calls apply(member pointer, name) for each of them.
template <typename Apply>
void for_each_function(Apply apply) {
  apply(&CuSolver::cusolverDnCreate, "cusolverDnCreate");
  apply(&CuSolver::cusolverDnSetStream, "cusolverDnSetStream");
  apply(&CuSolver::cusolverDnCreateParams, "cusolverDnCreateParams");
  apply(&CuSolver::cusolverDnXsyevBatched_bufferSize, "cusolverDnXsyevBatched_bufferSize");
  apply(&CuSolver::cusolverDnXsyevBatched, "cusolverDnXsyevBatched");
}

// Nothing where torch has loaded no cuSOLVER or one before CUDA 12.6 update 2, which has no
// cusolverDnXsyevBatched. torch loads its own when it solves its first system on a GPU.
std::optional<CuSolver> find_cusolver();

}  // namespace soap_fast
