// How the threads of the CPU share out the pieces of one call.
#pragma once

#include <cstdint>
#include <functional>

namespace soap_fast {

// One piece of work, on worker number `worker`, counted from 0.
using RunPiece = std::function<void(int64_t piece, int64_t worker)>;

// Runs pieces [first, end), each whole on one of at most `workers` threads, which take the next as
// they become free: with the largest pieces first, none is left with much at the end. No two pieces
// are under way on one worker, so that its number may name memory. Throws what a piece has thrown.
//
// MKL keeps to a worker's thread, for a single piece too: bits of a piece do not depend on what
// else is in the call.
void share_out(int64_t first, int64_t end, int64_t workers, const RunPiece& run);

}  // namespace soap_fast
