// A narrow QR: the columns of one vector of the processor, reflected one by one.
#pragma once

#include <cstdint>

namespace soap_fast {

// Columns that a leaf takes at most: a row of them is a vector of 512 bits.
template <typename T>
constexpr int64_t kLeafColumns = 64 / sizeof(T);

// a [m, n], row-major with leading dimension lda, m >= n, n <= kLeafColumns, its columns scaled to
// a largest entry near 1, becomes the V of a = (I - V T Vᵀ) R with its ones on the diagonal and its
// zeros above; t [n, n], row-major with leading dimension ldt, becomes T, upper triangular, zeros
// below. R is not kept. `room` has place for (m + kLeafColumns) rows of kLeafColumns.
void qr_leaf(int64_t m, int64_t n, float* a, int64_t lda, float* t, int64_t ldt, float* room);
void qr_leaf(int64_t m, int64_t n, double* a, int64_t lda, double* t, int64_t ldt, double* room);

}  // namespace soap_fast
