// What a launcher returns.
#pragma once

#include <cuda_runtime.h>

namespace soap_fast {

// nullptr, or CUDA's words for why the launch just made did not start.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace soap_fast
