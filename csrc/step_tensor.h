// One step of one tensor on one thread, from its gradient to its parameter.
#pragma once

#include "step.h"

namespace soap_fast {

// Elements of workspace that `step_tensor` needs for a tensor of `numel` elements.
constexpr int64_t step_workspace(int64_t numel) {
  return 2 * ((numel + 15) / 16 * 16) + 2 * kFold * kFold;
}

// About how many floating point operations it takes.
int64_t step_flops(const StepTensor& tensor, const StepMode* modes);

// Takes the step whole or not at all; returns whether it was taken.
bool step_tensor(const StepTensor& tensor, const StepOptions& options, const StepMode* modes,
                 const StepAxis* walks, float* workspace);

}  // namespace soap_fast
