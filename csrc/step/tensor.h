// One step of one tensor on one thread, from its gradient to its parameter.
#pragma once

#include "step/step.h"

namespace soap_fast {

// Its elements.
int64_t step_numel(const StepTensor& tensor, const StepMode* modes);

// About how many floating point operations it takes.
int64_t step_flops(const StepTensor& tensor, const StepMode* modes);

// Takes the step whole or not at all; returns whether it was taken.
bool step_tensor(const StepTensor& tensor, const StepOptions& options, const StepMode* modes,
                 const StepAxis* walks, float* workspace);

}  // namespace soap_fast
