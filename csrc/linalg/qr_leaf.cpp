// A narrow QR: the columns of one vector of the processor, reflected one by one.
#include <algorithm>
#include <cmath>
#include <cstdlib>  // defines __GLIBC__
#include <limits>

#include "linalg/qr.h"
#include "linalg/vector_clones.h"

namespace soap_fast {
namespace {

// The numbers of one reflection I - tau v vᵀ, v = (1, inverse · what stands below the head).
template <typename T>
struct Reflection {
  T tau, inverse;
};

// 0 and 0, no reflection, where next to nothing stands below the head. Squares under the bound are
// lost to underflow in part, and belong to entries (1e-12 in float32) far below the rounding of
// the column, whose largest entry was near 1.
template <typename T>
SOAP_FAST_INLINE Reflection<T> reflection_of(T head, T squares_below) {
  using Limits = std::numeric_limits<T>;
  constexpr T kNothing = Limits::min() / Limits::epsilon() / Limits::epsilon();
  if (!(squares_below > kNothing)) return {0, 0};
  const T norm = std::sqrt(head * head + squares_below);
  const T beta = head >= 0 ? -norm : norm;
  return {(beta - head) / beta, 1 / (head - beta)};
}

// Rows are vectors, so one sum over the rows has all that a column needs in its lanes: the column's
// norm, its products with later columns and, for T, with earlier ones. Each pass over the rows
// reflects them by one column and sums for the next.
template <typename T>
SOAP_FAST_INLINE void leaf(int64_t m, int64_t n, T* a, int64_t lda, T* t, int64_t ldt, T* room) {
  constexpr int64_t kLanes = kLeafColumns<T>;
  // Aligned as its elements are; `room` may lie anywhere.
  typedef T Vector __attribute__((vector_size(64), aligned(alignof(T)), may_alias));
  const auto row = [](T* rows, int64_t i) -> Vector& {
    return *reinterpret_cast<Vector*>(rows + i * kLanes);
  };
  T *v = room, *columns_of_t = room + m * kLanes;
  for (int64_t i = 0; i < m; ++i) {
    std::fill(std::copy_n(a + i * lda, n, v + i * kLanes), v + (i + 1) * kLanes, T(0));
  }
  constexpr int kSums = 4;  // or each addition waits for the last
  Vector sums[kSums] = {};
  for (int64_t i = 1; i < m; ++i) sums[i % kSums] += v[i * kLanes] * row(v, i);

  for (int64_t j = 0; j < n; ++j) {
    const Vector below = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    const auto [tau, inverse] = reflection_of<T>(v[j * kLanes + j], below[j]);
    const Vector along = row(v, j) + inverse * below;  // every column along this reflection
    Vector t_column = {};
    for (int64_t i = 0; i < j; ++i) t_column -= (tau * along[i]) * row(columns_of_t, i);
    t_column[j] = tau;
    row(columns_of_t, j) = t_column;

    Vector keep, gain;  // a row becomes keep · row + (its entry of v) · gain
    for (int64_t k = 0; k < kLanes; ++k) {
      keep[k] = k == j ? T(0) : T(1);
      gain[k] = k < j ? T(0) : k == j ? T(1) : -tau * along[k];
      if (k >= j) v[j * kLanes + k] = k == j ? T(1) : T(0);
    }
    for (Vector& sum : sums) sum = Vector{};
    const auto reflect = [&](int64_t i) {
      row(v, i) = row(v, i) * keep + (v[i * kLanes + j] * inverse) * gain;
    };
    const int64_t next = std::min(j + 1, kLanes - 1);  // what is summed for no column is not used
    if (j + 1 < m) reflect(j + 1);
    int64_t i = j + 2;
    for (; i + kSums <= m; i += kSums) {
      for (int s = 0; s < kSums; ++s) {
        reflect(i + s);
        sums[s] += v[(i + s) * kLanes + next] * row(v, i + s);
      }
    }
    for (; i < m; ++i) {
      reflect(i);
      sums[0] += v[i * kLanes + next] * row(v, i);
    }
  }

  for (int64_t i = 0; i < m; ++i) std::copy_n(v + i * kLanes, n, a + i * lda);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) t[i * ldt + j] = columns_of_t[j * kLanes + i];
  }
}

}  // namespace

SOAP_FAST_CLONES void qr_leaf(int64_t m, int64_t n, float* a, int64_t lda, float* t, int64_t ldt,
                              float* room) {
  leaf(m, n, a, lda, t, ldt, room);
}
SOAP_FAST_CLONES void qr_leaf(int64_t m, int64_t n, double* a, int64_t lda, double* t, int64_t ldt,
                              double* room) {
  leaf(m, n, a, lda, t, ldt, room);
}

}  // namespace soap_fast
