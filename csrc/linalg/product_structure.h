// What the caller of grouped_matmul_ tells of all its groups, as soap_fast/step/grouped_matmul.py
// says: the same numbers.
#pragma once

namespace soap_fast {

constexpr int kSymmetric = 1, kRightLower = 2, kLeftUpper = 4, kSubtract = 8;

}  // namespace soap_fast
