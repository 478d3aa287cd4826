// What a refresh made of a factor's basis.
#pragma once

#include <cstdint>

namespace soap_fast {

// soap_fast/step/refresh.py names the first four alike; the last is seen only while it runs.
enum class Outcome : int64_t {
  kLeftOut = 0,
  kRefreshed = 1,
  kKept = 2,
  kFailed = 3,
  kUnderWay = 4,
};

}  // namespace soap_fast
