// What K Q tells of a basis before its refresh.
#pragma once

#include <cstdint>

namespace soap_fast {

struct Rayleigh {
  double squares;   // |K Q|² in Frobenius norm; of H = QᵀKQ too, Q being orthogonal
  double diagonal;  // sum of the squares of H's diagonal
  double largest;   // max|K Q|; of no meaning where squares is not finite
};

// From `rows` [d, d], row j being K q_j, and from q [d, d], row-major: H's diagonal to
// eigenvalues [d]. Sums are in float64. `strip` is memory for kRayleighStrip · d elements.
constexpr int64_t kRayleighStrip = 64;
Rayleigh rayleigh(int64_t d, const float* rows, const float* q, double* eigenvalues, float* strip);
Rayleigh rayleigh(int64_t d, const double* rows, const double* q, double* eigenvalues,
                  double* strip);

}  // namespace soap_fast
