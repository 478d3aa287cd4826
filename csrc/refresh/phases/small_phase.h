// The one phase of a refresh of small factors: Householder QR of K Q, a warp for each.
//
// The Cholesky route is not for them: rank-1 factors of size 3 to 9 can lose a pivot to rounding.
#pragma once

#include "refresh/phases/examine.h"
#include "refresh/phases/small.h"

namespace soap_fast {

// A lane per column; the workspace of a warp lies in shared memory.
constexpr int kHouseholderUpTo = 32;

struct RefreshSmall {
  static constexpr bool kByWarp = true;
  SOAP_FAST_HOST_DEVICE static int parts(int, RefreshCall) { return 1; }

  // `scratch` holds refresh_workspace(d).
  template <typename T, typename Team>
  SOAP_FAST_HOST_DEVICE static void run(const Team& team, const RefreshStack<T>& stack, int i, int,
                                        RefreshCall, double tolerance, T* scratch) {
    const int d = stack.d;
    const int64_t place = stack.place(i);
    T* carry = stack.carries + int64_t(i) * d * d;
    if (team.rank() == 0) stack.off_diagonals[i] = Float<T>::not_a_number;
    team.sync();
    Outcome outcome = !stack.allowed[i] ? Outcome::kLeftOut : Outcome::kFailed;
    if (stack.allowed[i] && place >= 0) {
      outcome = refresh_by_householder(team, d, stack.factors + place * d * d,
                                       stack.bases + place * d * d, T(tolerance), scratch,
                                       stack.order(i), carry, stack.off_diagonals + i);
    }
    if (team.rank() == 0) stack.decide(i, outcome);
    if (outcome == Outcome::kRefreshed) return;
    for (int e = team.rank(); e < d * d; e += team.size()) carry[e] = T(e % d == e / d);
    for (int j = team.rank(); j < d; j += team.size()) stack.order(i)[j] = j;
  }
};

}  // namespace soap_fast
