// What K Q tells of a basis before its refresh.
#pragma once

#include <cstdint>

namespace soap_fast {

struct Rayleigh {
  double squares;   // |K Q|² in Frobenius norm; of H = QᵀKQ too, Q being orthogonal
  double diagonal;  // sum of the squares of H's diagonal
};

// From kq = K Q and q, [d, d], row-major: H's diagonal to eigenvalues [d], the largest magnitude of
// each column of kq to largest [d], of no meaning where squares is not finite. Sums are in float64.
Rayleigh rayleigh(int64_t d, const float* kq, const float* q, double* eigenvalues, float* largest);
Rayleigh rayleigh(int64_t d, const double* kq, const double* q, double* eigenvalues,
                  double* largest);

}  // namespace soap_fast
