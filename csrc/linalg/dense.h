// Dense linear algebra of one factor on the CPU, by torch's BLAS where it can be called directly.
#pragma once

#include <cstdint>

namespace soap_fast {

// Alignment of a matrix from which on MKL's bits depend on its values alone: on an AMD EPYC, MKL
// 2024.2 adds up in another order from an address that is not a multiple of this.
constexpr int64_t kAlignment = 64;

// c = a b, [d, d] each, row-major; aᵀ in place of a where `transpose_a`.
template <typename T>
void multiply(bool transpose_a, int64_t d, const T* a, const T* b, T* c);

// Whether products of any shape can be made by `gemm`: MKL is torch's BLAS and can be called.
bool has_gemm();

// c [m, n] = alpha op(a) op(b) + beta c, row-major, rows lda, ldb and ldc elements apart; op
// transposes where it is asked to. c is not read where beta is 0.
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
          const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
          int64_t ldc);

// a [d, d], its columns scaled to a largest entry near 1, is lost; q [d, d] becomes the Q of a = Q
// R, of any signs; both row-major. `workspace` has room for orthogonal_factor_workspace(d).
template <typename T>
void orthogonal_factor(int64_t d, T* a, T* q, T* workspace);
int64_t orthogonal_factor_workspace(int64_t d);

}  // namespace soap_fast
