// A refresh's kernels: each phase of sequence.h by warps or by blocks.
#include <algorithm>

#include "cuda/launch_error.h"
#include "refresh/phases/sequence.h"

namespace soap_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kSharedBytes = 48 * 1024;  // what a block gets without asking for more
static_assert(kBlockScratch<float> * sizeof(float) + kWarps * sizeof(double) <= kSharedBytes &&
                  kBlockScratch<double> * sizeof(double) + kWarps * sizeof(double) <= kSharedBytes,
              "three tiles fit into a block's shared memory");

// Two blocks of a processor leave a thread 128 registers. At three, which leave 80, FactorColumns
// spills, and SolveRows on sm_100; both issue in most cycles without a third. Left to itself the
// compiler takes 48 for RefreshSmall, which spills then.
constexpr int kLeastBlocks = 2;

// A unit per warp; `scratch` elements of shared memory each.
template <typename P, typename T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    refresh_by_warps(const __grid_constant__ RefreshTable<T> table, RefreshCall call, int scratch) {
  extern __shared__ double memory[];  // double, for its alignment
  const int warp = threadIdx.x / kWarpSize;
  const auto unit = unit_of(table, blockIdx.x * int64_t(blockDim.x / kWarpSize) + warp,
                            [&](int d) { return P::parts(d, call); });
  if (unit.stack == nullptr) return;
  P::run(WarpTeam(), *unit.stack, unit.factor, unit.part, call, table.tolerance,
         reinterpret_cast<T*>(memory) + warp * scratch);
}

// A unit per block.
template <typename P, typename T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    refresh_by_blocks(const __grid_constant__ RefreshTable<T> table, RefreshCall call) {
  __shared__ alignas(kAligned) T scratch[kBlockScratch<T>];
  __shared__ double of_warps[kWarps];
  const auto unit = unit_of(table, blockIdx.x, [&](int d) { return P::parts(d, call); });
  if (unit.stack == nullptr) return;
  P::run(BlockTeam<double, kThreads>{of_warps}, *unit.stack, unit.factor, unit.part, call,
         table.tolerance, scratch);
}

// A unit per block, in the order of steps.
template <typename P, typename T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    refresh_in_steps(const __grid_constant__ RefreshTable<T> table,
                     const __grid_constant__ Steps steps) {
  __shared__ alignas(kAligned) T scratch[kBlockScratch<T>];
  __shared__ double of_warps[kWarps];
  run_next<P>(BlockTeam<double, kThreads>{of_warps}, table, steps, scratch);
}

template <typename T>
int largest_of(const RefreshTable<T>& table) {
  int largest = 0;
  for (int s = 0; s < table.count; ++s) largest = std::max(largest, table.stacks[s].size);
  return largest;
}

}  // namespace

template <typename T>
const char* launch_refresh(Phase phase, const RefreshTable<T>& table, RefreshCall call,
                           void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  return visit_phase<T>(phase, [&](auto of) -> const char* {
    using P = decltype(of);
    const int64_t units = units_in(table, [&](int d) { return P::parts(d, call); });
    if (units == 0) return nullptr;  // later steps have none either
    if constexpr (kGoesBySteps<P>) {
      const Steps steps = steps_of<P>(table, call);
      refresh_in_steps<P, T><<<unsigned(steps.teams()), kThreads, 0, on>>>(table, steps);
    } else if constexpr (P::kByWarp) {
      const bool small = phase == Phase::kSmall;  // the only one that needs memory
      const int scratch = small ? refresh_workspace(largest_of(table)) : 0;
      const int bytes = scratch * static_cast<int>(sizeof(T));
      const int warps = small ? std::min(kWarps, kSharedBytes / bytes) : kWarps;
      const unsigned blocks = static_cast<unsigned>((units + warps - 1) / warps);
      refresh_by_warps<P, T>
          <<<blocks, warps * kWarpSize, warps * bytes, on>>>(table, call, scratch);
    } else {
      refresh_by_blocks<P, T><<<static_cast<unsigned>(units), kThreads, 0, on>>>(table, call);
    }
    return launch_error();
  });
}

template const char* launch_refresh(Phase, const RefreshTable<float>&, RefreshCall, void*);
template const char* launch_refresh(Phase, const RefreshTable<double>&, RefreshCall, void*);

}  // namespace soap_fast
