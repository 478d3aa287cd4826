#include "refresh/rayleigh.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>  // defines __GLIBC__

#include "linalg/vector_clones.h"

namespace soap_fast {
namespace {

// Columns that are added up side by side: their sums stay near.
constexpr int64_t kStrip = 256;

// Rows [0, height) of `width` columns, added to sums that are there.
template <int64_t height, typename T>
SOAP_FAST_INLINE void take_rows(int64_t width, int64_t d, const T* kq, const T* q,
                                double* __restrict eigenvalues, double* __restrict squares,
                                T* __restrict largest) {
  for (int64_t j = 0; j < width; ++j) {
    double products = 0, of_square = 0;
    T greatest = largest[j];
    for (int64_t i = 0; i < height; ++i) {
      const double entry = kq[i * d + j];
      products += entry * q[i * d + j];
      of_square += entry * entry;
      const T magnitude = std::fabs(kq[i * d + j]);
      greatest = greatest < magnitude ? magnitude : greatest;
    }
    eigenvalues[j] += products;
    squares[j] += of_square;
    largest[j] = greatest;
  }
}

template <typename T>
SOAP_FAST_INLINE Rayleigh examine(int64_t d, const T* kq, const T* q, double* eigenvalues,
                                  T* largest) {
  constexpr int64_t kRows = 4;  // the sums are loaded and stored once for as many
  Rayleigh found{};
  std::fill_n(eigenvalues, d, 0.0);
  std::fill_n(largest, d, T(0));
  for (int64_t first = 0; first < d; first += kStrip) {
    const int64_t width = std::min(kStrip, d - first);
    double squares[kStrip] = {};
    const auto take = [&](auto height, int64_t row) {
      const int64_t start = row * d + first;
      take_rows<decltype(height)::value>(width, d, kq + start, q + start, eigenvalues + first,
                                         squares, largest + first);
    };
    int64_t row = 0;
    for (; row + kRows <= d; row += kRows) take(std::integral_constant<int64_t, kRows>(), row);
    for (; row < d; ++row) take(std::integral_constant<int64_t, 1>(), row);
    for (int64_t j = 0; j < width; ++j) found.squares += squares[j];
  }
  for (int64_t j = 0; j < d; ++j) found.diagonal += eigenvalues[j] * eigenvalues[j];
  return found;
}

}  // namespace

SOAP_FAST_CLONES Rayleigh rayleigh(int64_t d, const float* kq, const float* q, double* eigenvalues,
                                   float* largest) {
  return examine(d, kq, q, eigenvalues, largest);
}
SOAP_FAST_CLONES Rayleigh rayleigh(int64_t d, const double* kq, const double* q,
                                   double* eigenvalues, double* largest) {
  return examine(d, kq, q, eigenvalues, largest);
}

}  // namespace soap_fast
