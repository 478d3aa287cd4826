// The phases of a refresh by Cholesky on the CPU, a lone thread for each team: the algorithm of the
// GPU where there is none. refresh_ itself has a faster one there, see refresh_cpu.cpp.
#include <torch/csrc/stable/ops.h>

#include "refresh_cholesky.h"

namespace soap_fast {
namespace {

template <typename T>
void run_phase(Phase phase, const RefreshTable<T>& table, RefreshCall call) {
  visit_phase<T>(phase, [&](auto of) {
    using P = decltype(of);
    const auto parts = [&](int d) { return P::parts(d, call); };
    // Units are independent: any split among threads gives the same bits.
    torch::stable::parallel_for(0, units_in(table, parts), 1, [&](int64_t begin, int64_t end) {
      constexpr int kSmall = refresh_workspace(kHouseholderUpTo);
      std::vector<T> scratch(std::max(kBlockScratch<T>, kSmall));
      for (int64_t index = begin; index < end; ++index) {
        const auto unit = unit_of(table, index, parts);
        P::run(LoneTeam(), *unit.stack, unit.factor, unit.part, call, table.tolerance,
               scratch.data());
      }
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
