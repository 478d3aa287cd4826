// The phases of a refresh by Cholesky on the CPU, a lone thread for each team: the algorithm of the
// GPU where there is none. refresh_ itself has a faster one there, see cpu.cpp.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "refresh/by_cholesky.h"
#include "workers.h"

namespace soap_fast {
namespace {

template <typename T>
void run_phase(Phase phase, const RefreshTable<T>& table, RefreshCall call) {
  visit_phase<T>(phase, [&](auto of) {
    using P = decltype(of);
    const auto parts = [&](int d) { return P::parts(d, call); };
    constexpr int kScratch = std::max<int>(kBlockScratch<T>, refresh_workspace(kHouseholderUpTo));
    const int64_t workers = torch::stable::get_num_threads();
    std::vector<std::vector<T>> scratches(workers, std::vector<T>(kScratch));
    // Units are independent: any split among threads gives the same bits.
    share_out(0, units_in(table, parts), workers, [&](int64_t index, int64_t worker) {
      const auto unit = unit_of(table, index, parts);
      P::run(LoneTeam(), *unit.stack, unit.factor, unit.part, call, table.tolerance,
             scratches[worker].data());
    });
  });
}

}  // namespace

void refresh_by_cholesky_cpu(TensorList factors, TensorList bases, TensorList selections,
                             TensorList allowed, double tolerance, TensorList orders,
                             TensorList carries, TensorList outcomes, TensorList off_diagonals,
                             int64_t householder_up_to) {
  const RefreshArguments arguments{factors, bases,   selections, allowed,      tolerance,
                                   orders,  carries, outcomes,   off_diagonals};
  check_refresh(factors, bases, selections, allowed, orders, carries, outcomes, off_diagonals);
  refresh_by_cholesky(arguments, householder_up_to, run_phase<float>, run_phase<double>);
}

}  // namespace soap_fast
