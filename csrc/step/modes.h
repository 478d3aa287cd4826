// Products along the modes of one tensor's plane [fold, batch, d_1 .. d_k].
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "linalg/dense.h"
#include "step/step.h"

namespace soap_fast {

template <typename T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(address);
}

// Two planes of one tensor, of which products read one and write the other.
struct Planes {
  float *now, *other;
  void swap() { std::swap(now, other); }
};

// A product's mode in a plane [before, d, after].
struct Axis {
  int64_t before, d, after;
};

// Of number `number` of `count` products, `before` elements lying before all of them.
inline Axis axis_of(int64_t before, const StepMode* products, int64_t count, int64_t number) {
  Axis axis{before, products[number].size, 1};
  for (int64_t i = 0; i < number; ++i) axis.before *= products[i].size;
  for (int64_t i = number + 1; i < count; ++i) axis.after *= products[i].size;
  return axis;
}

// Whether a matrix lies as one with memory of its own would. The last bits of BLAS depend on it,
// and a factor has another place in its stack where a process has only some of them.
inline bool is_aligned(const float* matrix) {
  return reinterpret_cast<uintptr_t>(matrix) % kAlignment == 0;
}

// out = Qᵀ x along an axis, Q x where `back`; `room` [d, d] for a Q that is not aligned.
inline void rotate(const Axis& axis, const float* q, bool back, const float* x, float* out,
                   float* room) {
  const int64_t d = axis.d;
  if (!is_aligned(q)) q = std::copy_n(q, d * d, room) - d * d;
  if (axis.after == 1) {  // rows of x times Q
    gemm(false, back, axis.before, d, d, 1, x, d, q, d, 0, out, d);
    return;
  }
  const int64_t step = d * axis.after;
  for (int64_t b = 0; b < axis.before; ++b) {
    gemm(!back, false, d, axis.after, d, 1, q, d, x + b * step, axis.after, 0, out + b * step,
         axis.after);
  }
}

// Kronecker product of the folded modes' matrices [fold, fold]; at address 0 lies the identity.
inline void join(const StepMode* folded, int64_t count, int64_t fold, float* joint) {
  std::fill_n(joint, fold * fold, 1.0f);
  int64_t inner = fold;
  for (int64_t m = 0; m < count; ++m) {
    const int64_t d = folded[m].size;
    const float* q = at<const float>(folded[m].basis);
    inner /= d;
    for (int64_t i = 0; i < fold; ++i) {
      for (int64_t j = 0; j < fold; ++j) {
        const int64_t a = i / inner % d, b = j / inner % d;
        joint[i * fold + j] *= q ? q[a * d + b] : static_cast<float>(a == b);
      }
    }
  }
}

}  // namespace soap_fast
