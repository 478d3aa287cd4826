// torch's current CUDA stream, found at run time.
#pragma once

#include <cstdint>

namespace soap_fast {

// A cudaStream_t. Raises if this process has not loaded a torch with CUDA.
void* current_cuda_stream(int32_t device_index);

}  // namespace soap_fast
