#include "rayleigh.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>  // defines __GLIBC__

#include "vector_clones.h"

namespace soap_fast {
namespace {

constexpr int64_t kLanes = 16;

SOAP_FAST_INLINE double sum_of(double (&lanes)[kLanes]) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// squares and largest of n numbers.
template <typename T>
SOAP_FAST_INLINE void measure(int64_t n, const T* numbers, Rayleigh& found) {
  double squares[kLanes] = {};
  T largest[kLanes] = {};
  const auto take = [&](int64_t i, int64_t lane) {
    const T magnitude = std::fabs(numbers[i]);
    squares[lane] += double(numbers[i]) * numbers[i];
    largest[lane] = magnitude > largest[lane] ? magnitude : largest[lane];
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) take(i + lane, lane);
  }
  for (int64_t lane = 0; i < n; ++i, ++lane) take(i, lane);
  found.squares = sum_of(squares);
  found.largest = *std::max_element(largest, largest + kLanes);
}

// Columns of q [height, d] beside each other: strip [d, kRayleighStrip].
template <typename T>
SOAP_FAST_INLINE void transpose_strip(int64_t height, int64_t d, const T* q, T* strip) {
  constexpr int64_t kTile = 8;  // reads and writes of a tile stay in as many cache lines
  for (int64_t top = 0; top < height; top += kTile) {
    const int64_t bottom = std::min(height, top + kTile);
    for (int64_t j = 0; j < d; ++j) {
      for (int64_t i = top; i < bottom; ++i) strip[j * kRayleighStrip + i] = q[i * d + j];
    }
  }
}

template <typename T>
SOAP_FAST_INLINE double dot(int64_t n, const T* x, const T* y) {
  double products[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      products[lane] += double(x[i + lane]) * y[i + lane];
    }
  }
  for (int64_t lane = 0; i < n; ++i, ++lane) products[lane] += double(x[i]) * y[i];
  return sum_of(products);
}

template <typename T>
SOAP_FAST_INLINE Rayleigh examine(int64_t d, const T* rows, const T* q, double* eigenvalues,
                                  T* strip) {
  Rayleigh found{};
  measure(d * d, rows, found);
  std::fill_n(eigenvalues, d, 0.0);
  for (int64_t top = 0; top < d; top += kRayleighStrip) {
    const int64_t height = std::min(kRayleighStrip, d - top);
    transpose_strip(height, d, q + top * d, strip);
    for (int64_t j = 0; j < d; ++j) {
      eigenvalues[j] += dot(height, rows + j * d + top, strip + j * kRayleighStrip);
    }
  }
  for (int64_t j = 0; j < d; ++j) found.diagonal += eigenvalues[j] * eigenvalues[j];
  return found;
}

}  // namespace

SOAP_FAST_CLONES Rayleigh rayleigh(int64_t d, const float* rows, const float* q,
                                   double* eigenvalues, float* strip) {
  return examine(d, rows, q, eigenvalues, strip);
}
SOAP_FAST_CLONES Rayleigh rayleigh(int64_t d, const double* rows, const double* q,
                                   double* eigenvalues, double* strip) {
  return examine(d, rows, q, eigenvalues, strip);
}

}  // namespace soap_fast
