// Launcher of a refresh's CUDA kernels. No torch header: pointers, sizes, a stream.
#pragma once

#include "refresh/phases/sequence.h"

namespace soap_fast {

// Runs a phase for all factors of a table. Returns nullptr, or CUDA's words for what went wrong.
template <typename T>
const char* launch_refresh(Phase phase, const RefreshTable<T>& table, RefreshCall call,
                           void* stream);

}  // namespace soap_fast
