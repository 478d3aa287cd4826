// A refresh by Cholesky on any device that runs the phases of phases/sequence.h.
#pragma once

#include <functional>

#include "refresh/phases/sequence.h"
#include "refresh/refresh.h"

namespace soap_fast {

// Starts a phase for all factors of a table; throws where it does not start.
template <typename T>
using RunPhase = std::function<void(Phase, const RefreshTable<T>&, RefreshCall)>;

// Called after each phase and each product, in the order of refresh_plan().
using Launched = std::function<void()>;

// Factors of at most `householder_up_to`, itself at most kHouseholderUpTo, go by Householder's QR.
// Memory on the factors' device is taken and kernels are started; nothing is waited for.
void refresh_by_cholesky(
    const RefreshArguments& arguments, int64_t householder_up_to, const RunPhase<float>& run_float,
    const RunPhase<double>& run_double, const Launched& launched = [] {});

}  // namespace soap_fast
