// The phases of a refresh by Cholesky on the CPU, a lone thread for each team: the algorithm of the
// GPU where there is none. refresh_ itself has a faster one there, see cpu.cpp.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "refresh/by_cholesky.h"
#include "workers.h"

namespace soap_fast {
namespace {

// To take a piece costs about as much as a small row of a factor, which is a unit of most phases.
constexpr int64_t kPiecesPerWorker = 8;

// Units [first, end) of a phase, by one thread. Inlined into a piece of share_out(), a
// factorisation becomes slower: 1000 factors of 16 take 21 ms in place of 14 (GCC 12, one thread of
// an AMD EPYC).
template <typename P, typename T>
__attribute__((noinline)) void run_units(const RefreshTable<T>& table, RefreshCall call,
                                         int64_t first, int64_t end, T* scratch) {
  for (int64_t index = first; index < end; ++index) {
    const auto unit = unit_of(table, index, [&](int d) { return P::parts(d, call); });
    P::run(LoneTeam(), *unit.stack, unit.factor, unit.part, call, table.tolerance, scratch);
  }
}

template <typename T>
void run_step(Phase phase, const RefreshTable<T>& table, RefreshCall call) {
  visit_phase<T>(phase, [&](auto of) {
    using P = decltype(of);
    constexpr int kScratch = std::max<int>(kBlockScratch<T>, refresh_workspace(kHouseholderUpTo));
    const int64_t workers = torch::stable::get_num_threads();
    const int64_t units = units_in(table, [&](int d) { return P::parts(d, call); });
    const int64_t together = std::max<int64_t>(1, units / (kPiecesPerWorker * workers));
    std::vector<std::vector<T>> scratches(workers, std::vector<T>(kScratch));
    // Units are independent: any split among threads gives the same bits.
    share_out(0, (units + together - 1) / together, workers, [&](int64_t piece, int64_t worker) {
      const int64_t first = piece * together, end = std::min(units, first + together);
      run_units<P>(table, call, first, end, scratches[worker].data());
    });
  });
}

template <typename T>
void run_phase(Phase phase, const RefreshTable<T>& table, RefreshCall call) {
  for (int step = call.step; step < call.step + call.steps; ++step) {
    run_step(phase, table, RefreshCall{call.round, step});
  }
}

}  // namespace

void refresh_by_cholesky_cpu(TensorList factors, TensorList bases, TensorList selections,
                             TensorList allowed, double tolerance, TensorList orders,
                             TensorList carries, TensorList outcomes, TensorList off_diagonals,
                             int64_t householder_up_to, Lent workspace) {
  const RefreshArguments arguments{factors, bases,   selections, allowed,       tolerance,
                                   orders,  carries, outcomes,   off_diagonals, workspace};
  check_refresh(arguments);
  refresh_by_cholesky(arguments, householder_up_to, run_phase<float>, run_phase<double>);
}

std::vector<double> refresh_times_cpu(TensorList factors, TensorList bases, TensorList selections,
                                      TensorList allowed, double tolerance, TensorList orders,
                                      TensorList carries, TensorList outcomes,
                                      TensorList off_diagonals, int64_t householder_up_to,
                                      Lent workspace) {
  using Clock = std::chrono::steady_clock;
  const RefreshArguments arguments{factors, bases,   selections, allowed,       tolerance,
                                   orders,  carries, outcomes,   off_diagonals, workspace};
  check_refresh(arguments);
  std::vector<double> times;
  Clock::time_point last = Clock::now();
  refresh_by_cholesky(arguments, householder_up_to, run_phase<float>, run_phase<double>, [&] {
    const Clock::time_point now = Clock::now();
    times.push_back(std::chrono::duration<double, std::micro>(now - last).count());
    last = now;
  });
  return times;
}

}  // namespace soap_fast
