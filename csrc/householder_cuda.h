// Launcher of the Householder kernels. No torch header: pointers, sizes, a stream.
#pragma once

#include <cstdint>

namespace soap_fast {

// In place: each of matrices [count, d, d], contiguous, becomes the Q of its QR, of any signs. A
// warp has a matrix of d <= 32, a block a larger one. Returns nullptr, or CUDA's words for what
// went wrong.
template <typename T>
const char* launch_householder(T* matrices, int64_t count, int64_t d, void* stream);

}  // namespace soap_fast
