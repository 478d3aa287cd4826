#include "qr_leaf.h"

#include <cstdlib>  // defines __GLIBC__

#include "vector_clones.h"

namespace soap_fast {
namespace {

// Partial sums of a dot product: two vectors of 512 bits, added up in one order on every machine.
template <typename T>
constexpr int64_t kLanes = 128 / sizeof(T);

template <typename T>
SOAP_FAST_INLINE T dot(int64_t n, const T* x, const T* y) {
  T lanes[kLanes<T>] = {};
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) lanes[lane] += x[i + lane] * y[i + lane];
  }
  for (int64_t lane = 0; i < n; ++i, ++lane) lanes[lane] += x[i] * y[i];
  for (int64_t half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// Sums of squares within these bounds have lost nothing to overflow or underflow that counts.
template <typename T>
constexpr T kSafeSquare = sizeof(T) == 4 ? T(1e-20) : T(1e-200);

// Turns x [n] into the w of its reflection I - tau w wᵀ, w[0] = 1, and returns tau; 0, no
// reflection, where nothing stands below its head.
template <typename T>
SOAP_FAST_INLINE T make_reflection(int64_t n, T* x) {
  T squares = dot(n - 1, x + 1, x + 1);
  T norm_squared = squares + x[0] * x[0];
  if (!(norm_squared > kSafeSquare<T> && norm_squared < 1 / kSafeSquare<T>)) {
    // Columns of K Q differ by as many decades as the eigenvalues of K, squares by twice as many.
    T largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    const T scale = scale_for(largest, Float<T>::smallest_normal, Float<T>::greatest);
    for (int64_t i = 0; scale > 0 && i < n; ++i) x[i] *= scale;
    squares = dot(n - 1, x + 1, x + 1);
    norm_squared = squares + x[0] * x[0];
  }
  T tau = 0, inverse = 0;
  if (squares > 0) {
    const T norm = std::sqrt(norm_squared);
    const T beta = x[0] >= 0 ? -norm : norm;
    tau = (beta - x[0]) / beta;
    inverse = 1 / (x[0] - beta);
  }
  x[0] = 1;
  for (int64_t i = 1; i < n; ++i) x[i] *= inverse;
  return tau;
}

template <typename T>
SOAP_FAST_INLINE void leaf(int64_t m, int64_t n, T* a, int64_t lda, T* t, int64_t ldt) {
  for (int64_t j = 0; j < n; ++j) {
    const int64_t left = m - j;
    T* w = a + j * lda + j;
    for (int64_t i = 0; i < j; ++i) a[j * lda + i] = 0;  // what stood there is R
    const T tau = make_reflection(left, w);
    for (int64_t column = j + 1; column < n; ++column) {
      T* x = a + column * lda + j;
      const T along = tau * dot(left, w, x);
      for (int64_t i = 0; i < left; ++i) x[i] -= along * w[i];
    }
    T with_earlier[kLeafColumns];  // V[:, :j]ᵀ w
    for (int64_t i = 0; i < j; ++i) with_earlier[i] = dot(left, a + i * lda + j, w);
    for (int64_t i = 0; i < n; ++i) {
      T total = 0;
      for (int64_t k = i; k < j; ++k) total += t[k * ldt + i] * with_earlier[k];
      t[j * ldt + i] = i < j ? -tau * total : i == j ? tau : T(0);
    }
  }
}

}  // namespace

SOAP_FAST_CLONES void qr_leaf(int64_t m, int64_t n, float* a, int64_t lda, float* t, int64_t ldt) {
  leaf(m, n, a, lda, t, ldt);
}
SOAP_FAST_CLONES void qr_leaf(int64_t m, int64_t n, double* a, int64_t lda, double* t,
                              int64_t ldt) {
  leaf(m, n, a, lda, t, ldt);
}

}  // namespace soap_fast
