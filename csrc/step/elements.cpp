#include "step/elements.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>  // defines __GLIBC__

#include "linalg/vector_clones.h"

namespace soap_fast {
namespace {

constexpr int64_t kBlock = 64;  // rows at a time: with 25 folded entries 6 KiB, which L1 holds
constexpr int64_t kLanes = 16;

// Offsets of `count` consecutive elements from number `first` on.
SOAP_FAST_INLINE void offsets(const StepAxis* axes, int64_t n_axes, int64_t first, int64_t count,
                              int64_t* found) {
  for (int64_t i = 0; i < count; ++i) found[i] = 0;
  int64_t inner = 1;
  for (int64_t axis = 0; axis < n_axes; ++axis) {
    const int64_t size = axes[axis].size, stride = axes[axis].stride;
    int64_t index = first / inner % size, left = inner - first % inner;
    for (int64_t i = 0; i < count; ++i) {
      found[i] += index * stride;
      if (--left == 0) {
        left = inner;
        if (++index == size) index = 0;
      }
    }
    inner *= size;
  }
}

SOAP_FAST_INLINE bool contiguous(const Strided& s, int64_t rows) {
  return s.row_axes <= 1 && (rows == 1 || s.rows[0].stride == 1);
}

struct Sum {
  float lanes[kLanes] = {};
  double total = 0;
  int64_t blocks = 0;

  SOAP_FAST_INLINE void add(const float* x, int64_t n) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) lanes[j] += x[i + j] * x[i + j];
    }
    for (int64_t j = 0; i < n; ++i, ++j) lanes[j] += x[i] * x[i];
  }

  // After each block: lanes hold few squares, so that float32 loses little.
  SOAP_FAST_INLINE void end_block() {
    if (++blocks % 64 == 0) flush();
  }

  SOAP_FAST_INLINE double result() {
    flush();
    return total;
  }

  SOAP_FAST_INLINE void flush() {
    for (int64_t j = 0; j < kLanes; ++j) total += lanes[j];
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] = 0;
  }
};

template <typename S>
SOAP_FAST_INLINE double gather(const S* source, const Strided& strided, int64_t fold, int64_t rows,
                               float scale, float* plane) {
  int64_t along_fold[kFold], at[kBlock];
  offsets(strided.fold, strided.fold_axes, 0, fold, along_fold);
  const bool straight = contiguous(strided, rows);
  Sum sum;
  for (int64_t first = 0; first < rows; first += kBlock) {
    const int64_t count = std::min(kBlock, rows - first);
    if (!straight) offsets(strided.rows, strided.row_axes, first, count, at);
    for (int64_t k = 0; k < fold; ++k) {
      const S* from = source + along_fold[k];
      float* to = plane + k * rows + first;
      if (straight) {
        for (int64_t i = 0; i < count; ++i) to[i] = scale * static_cast<float>(from[first + i]);
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = scale * static_cast<float>(from[at[i]]);
      }
      sum.add(to, count);
    }
    sum.end_block();
  }
  return sum.result();
}

template <typename S>
SOAP_FAST_INLINE void apply(const float* plane, const Strided& strided, int64_t fold, int64_t rows,
                            float size, float decay, S* target) {
  int64_t along_fold[kFold], at[kBlock];
  offsets(strided.fold, strided.fold_axes, 0, fold, along_fold);
  const bool straight = contiguous(strided, rows);
  for (int64_t first = 0; first < rows; first += kBlock) {
    const int64_t count = std::min(kBlock, rows - first);
    if (!straight) offsets(strided.rows, strided.row_axes, first, count, at);
    for (int64_t k = 0; k < fold; ++k) {
      const float* from = plane + k * rows + first;
      S* to = target + along_fold[k];
      for (int64_t i = 0; i < count; ++i) {
        S& p = to[straight ? first + i : at[i]];
        const float moved = static_cast<float>(p) - size * from[i];
        p = static_cast<S>(moved - decay * moved);
      }
    }
  }
}

// Aligned as its elements are: rows of a plane may lie anywhere.
typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int64_t kFoldBlock = 256;  // rows at a time
constexpr int64_t kVectors = kFoldBlock / kLanes;

SOAP_FAST_INLINE const Vector& vector_at(const float* x, int64_t i) {
  return reinterpret_cast<const Vector*>(x)[i];
}

// Columns of x that are worked on together, [fold, kFoldBlock] one row behind the other: in x
// itself rows lie multiples of a page apart, and would drive each other out of the cache.
struct Columns {
  Vector entries[kFold][kVectors];

  SOAP_FAST_INLINE void load(const float* x, int64_t fold, int64_t rows) {
    for (int64_t k = 0; k < fold; ++k) {
      for (int64_t v = 0; v < kVectors; ++v) entries[k][v] = vector_at(x + k * rows, v);
    }
  }
};

SOAP_FAST_CLONES void rotate_fold_clones(bool transpose, int64_t fold, int64_t rows,
                                         const float* __restrict matrix, const float* __restrict x,
                                         float* __restrict out) {
  const int64_t step = transpose ? fold : 1, other = transpose ? 1 : fold;
  Columns columns;
  int64_t first = 0;
  for (; first + kFoldBlock <= rows; first += kFoldBlock) {
    columns.load(x + first, fold, rows);
    for (int64_t to = 0; to < fold; ++to) {
      Vector sums[kVectors] = {};
      for (int64_t k = 0; k < fold; ++k) {
        const float entry = matrix[to * other + k * step];
        for (int64_t v = 0; v < kVectors; ++v) sums[v] += entry * columns.entries[k][v];
      }
      Vector* target = reinterpret_cast<Vector*>(out + to * rows + first);
      for (int64_t v = 0; v < kVectors; ++v) target[v] = sums[v];
    }
  }
  for (; first < rows; ++first) {
    for (int64_t to = 0; to < fold; ++to) {
      float sum = 0;
      for (int64_t k = 0; k < fold; ++k) {
        sum += matrix[to * other + k * step] * x[k * rows + first];
      }
      out[to * rows + first] = sum;
    }
  }
}

SOAP_FAST_CLONES void gram_fold_clones(int64_t fold, int64_t rows, const float* __restrict x,
                                       float* __restrict gram) {
  Vector sums[kFold * (kFold + 1) / 2] = {};
  const int64_t whole = rows / kFoldBlock * kFoldBlock;
  Columns columns;
  for (int64_t first = 0; first < whole; first += kFoldBlock) {
    columns.load(x + first, fold, rows);
    Vector* sum = sums;
    for (int64_t a = 0; a < fold; ++a) {
      const Vector* left = columns.entries[a];
      for (int64_t b = 0; b <= a; ++b, ++sum) {
        const Vector* right = columns.entries[b];
        for (int64_t v = 0; v < kVectors; ++v) *sum += left[v] * right[v];
      }
    }
  }
  const Vector* sum = sums;
  for (int64_t a = 0; a < fold; ++a) {
    for (int64_t b = 0; b <= a; ++b, ++sum) {
      double entry = 0;
      for (int64_t i = 0; i < kLanes; ++i) entry += (*sum)[i];
      for (int64_t i = whole; i < rows; ++i) entry += x[a * rows + i] * x[b * rows + i];
      gram[a * fold + b] = gram[b * fold + a] = static_cast<float>(entry);
    }
  }
}

SOAP_FAST_CLONES double gather_floats(const float* source, const Strided& strided, int64_t fold,
                                      int64_t rows, float scale, float* plane) {
  return gather(source, strided, fold, rows, scale, plane);
}

SOAP_FAST_CLONES void apply_floats(const float* plane, const Strided& strided, int64_t fold,
                                   int64_t rows, float size, float decay, float* target) {
  apply(plane, strided, fold, rows, size, decay, target);
}

SOAP_FAST_CLONES double adam_clones(int64_t n, float beta1, float left1, float beta2, float left2,
                                    float eps, float floor, float* __restrict exp_avg,
                                    float* __restrict exp_avg_sq, float* __restrict g) {
  Sum sum;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    for (int64_t i = first; i < last; ++i) {
      const float m = beta1 * exp_avg[i] + left1 * g[i];
      const float v = beta2 * exp_avg_sq[i] + left2 * (g[i] * g[i]);
      const float root = std::sqrt(v), denominator = root + eps;
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
      g[i] = denominator != 0 && !(root < floor) ? m / denominator : 0.0f;
    }
    sum.add(g + first, last - first);
    sum.end_block();
  }
  return sum.result();
}

}  // namespace

double gather_plane(StepDtype dtype, int64_t source, const Strided& strided, int64_t fold,
                    int64_t rows, float scale, float* plane) {
  switch (dtype) {
    case StepDtype::kBFloat16:
      return gather(reinterpret_cast<const c10::BFloat16*>(source), strided, fold, rows, scale,
                    plane);
    case StepDtype::kHalf:
      return gather(reinterpret_cast<const c10::Half*>(source), strided, fold, rows, scale, plane);
    case StepDtype::kFloat:
      break;
  }
  return gather_floats(reinterpret_cast<const float*>(source), strided, fold, rows, scale, plane);
}

void apply_plane(const float* plane, const Strided& strided, int64_t fold, int64_t rows, float size,
                 float decay, StepDtype dtype, int64_t target) {
  switch (dtype) {
    case StepDtype::kBFloat16:
      return apply(plane, strided, fold, rows, size, decay,
                   reinterpret_cast<c10::BFloat16*>(target));
    case StepDtype::kHalf:
      return apply(plane, strided, fold, rows, size, decay, reinterpret_cast<c10::Half*>(target));
    case StepDtype::kFloat:
      break;
  }
  apply_floats(plane, strided, fold, rows, size, decay, reinterpret_cast<float*>(target));
}

void rotate_fold(bool transpose, int64_t fold, int64_t rows, const float* matrix, const float* x,
                 float* out) {
  rotate_fold_clones(transpose, fold, rows, matrix, x, out);
}

void gram_fold(int64_t fold, int64_t rows, const float* x, float* gram) {
  gram_fold_clones(fold, rows, x, gram);
}

double adam(int64_t n, double beta1, double beta2, float eps, float floor, float* exp_avg,
            float* exp_avg_sq, float* g) {
  return adam_clones(n, static_cast<float>(beta1), static_cast<float>(1 - beta1),
                     static_cast<float>(beta2), static_cast<float>(1 - beta2), eps, floor, exp_avg,
                     exp_avg_sq, g);
}

}  // namespace soap_fast
