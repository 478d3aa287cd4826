// A narrow QR: a few columns reflected one by one, in loops over contiguous memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "eigh_scale.h"

namespace soap_fast {

// Columns that a leaf takes at most.
constexpr int64_t kLeafColumns = 8;

// a [m, n], column-major with leading dimension lda, m >= n, n <= kLeafColumns, becomes the V of
// a = (I - V T Vᵀ) R with its ones on the diagonal and its zeros above; t [n, n], column-major with
// leading dimension ldt, becomes T, upper triangular, zeros below. R is not kept.
void qr_leaf(int64_t m, int64_t n, float* a, int64_t lda, float* t, int64_t ldt);
void qr_leaf(int64_t m, int64_t n, double* a, int64_t lda, double* t, int64_t ldt);

}  // namespace soap_fast
