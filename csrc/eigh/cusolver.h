// eigh on CUDA for larger factors: cuSOLVER's batched solver, sizes side by side on streams.
#pragma once

#include <cstdint>
#include <vector>

#include "eigh/call.h"

namespace soap_fast {

// Factors [first, first + count) of a selection, left to torch's solver.
struct Leftover {
  size_t call;
  int64_t first, count;
  bool failed;  // in their own dtype, or else: cuSOLVER does not take them
};

// Solves what it can. The results are there for `current`, torch's current stream, and the host has
// waited for them once: what has failed is known.
std::vector<Leftover> eigh_cusolver(const std::vector<StackCall>& calls, void* current);

}  // namespace soap_fast
