// What a refresh made of a factor's basis.
#pragma once

#include <cstdint>

namespace soap_fast {

// soap_fast/refresh.py names the same numbers.
enum class Outcome : int64_t { kLeftOut = 0, kRefreshed = 1, kKept = 2, kFailed = 3 };

}  // namespace soap_fast
