// The scale under which a factor is solved, the same on the CPU and in CUDA kernels.
#pragma once

#include <cmath>
#include <limits>

#include "linalg/team.h"

namespace soap_fast {

// A factor that needs no solve carries one of these in place of its scale, a power of two.
enum ScaleMark { kZeroFactor = 0, kNonFiniteFactor = -1 };

// A power of two near 1 / largest: a float's range of magnitudes is far wider than what LAPACK
// and cuSOLVER square without loss. `largest` is max|K|, or infinity if K is not finite.
template <typename T>
SOAP_FAST_HOST_DEVICE T scale_for(T largest, T smallest_normal, T greatest) {
  if (!(largest <= greatest)) return T(kNonFiniteFactor);
  if (largest == 0) return T(kZeroFactor);
  // Within these bounds the scale itself is a normal number.
  if (largest < smallest_normal) largest = smallest_normal;
  if (largest > greatest / 4) largest = greatest / 4;
  int exponent;
  frexp(largest, &exponent);
  return ldexp(T(1), -exponent);
}

}  // namespace soap_fast
