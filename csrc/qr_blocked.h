// Q of the QR of a square matrix by blocks of reflections, so that nearly all of the work is
// products. LAPACK's geqrf and orgqr do the same, with panels in which it is not.
//
// Source: Elmroth and Gustavson, Applying recursion to serial and parallel QR factorization leads
// to better performance, 2000. A panel is halved until a leaf takes it; V and T of
// (I - V1 T1 V1ᵀ)(I - V2 T2 V2ᵀ) = I - V T Vᵀ are V = [V1 V2], T = [T1, -T1 V1ᵀ V2 T2; 0, T2].
#pragma once

#include <algorithm>

#include "qr_leaf.h"

namespace soap_fast {

// Columns of a panel.
constexpr int64_t kPanelColumns = 32;

// Elements of workspace for a matrix of d columns: T of each panel, and two products.
constexpr int64_t qr_workspace(int64_t d) {
  return (d + kPanelColumns) * kPanelColumns + 2 * d * kPanelColumns;
}

// multiply(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) is BLAS's gemm:
// c = alpha a b + beta c for c [m, n], all column-major.
template <typename T, typename Multiply>
class BlockedQR {
 public:
  // `workspace` has room for qr_workspace(d).
  BlockedQR(int64_t d, T* a, T* workspace, const Multiply& multiply)
      : d_(d), a_(a), t_(workspace), multiply_(multiply) {
    product_ = workspace + (d + kPanelColumns) * kPanelColumns;
    other_ = product_ + d * kPanelColumns;
  }

  // a [d, d], column-major, is lost; q [d, d], row-major, becomes the Q of a = Q R, of any signs.
  // Every finite matrix has one: columns that depend on earlier ones get an orthonormal completion.
  void orthogonal_factor(T* q) {
    for (int64_t first = 0; first < d_; first += kPanelColumns) reduce_panel(first);
    const int64_t last = (d_ - 1) / kPanelColumns * kPanelColumns;
    for (int64_t first = last; first >= 0; first -= kPanelColumns) prepend_panel(first, q);
  }

 private:
  int64_t width_of(int64_t first) const { return std::min(kPanelColumns, d_ - first); }
  T* t_of(int64_t first) const { return t_ + first * kPanelColumns; }

  // c = alpha a b + beta c, with `op` one of "NN", "TN", "NT".
  void multiply(const char* op, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
                const T* b, int64_t ldb, T beta, T* c, int64_t ldc) const {
    if (m > 0 && n > 0) multiply_(op[0], op[1], m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  }

  // Columns [n, n + right) of a panel or matrix: b = b - V (Tᵀ (Vᵀ b)) below its first n rows;
  // those are R and are not needed. v [m, n], t [n, n], b [m, right].
  void reflect_columns(int64_t m, int64_t n, int64_t right, const T* v, const T* t, T* b) const {
    multiply("TN", n, right, m, 1, v, d_, b, d_, 0, product_, n);
    multiply("TN", n, right, n, 1, t, kPanelColumns, product_, n, 0, other_, n);
    multiply("NN", m - n, right, n, -1, v + n, d_, other_, n, 1, b + n, d_);
  }

  // V in place of a [m, n], T to t [n, n].
  void factor(int64_t m, int64_t n, T* a, T* t) const {
    if (n <= kLeafColumns) return qr_leaf(m, n, a, d_, t, kPanelColumns);
    const int64_t left = (n / 2 + kLeafColumns - 1) / kLeafColumns * kLeafColumns;
    const int64_t right = n - left;
    T *right_a = a + left * d_, *right_t = t + left * kPanelColumns + left;
    factor(m, left, a, t);
    reflect_columns(m, left, right, a, t, right_a);
    for (int64_t j = 0; j < right; ++j) std::fill_n(right_a + j * d_, left, T(0));
    factor(m - left, right, right_a + left, right_t);
    T* corner = t + left * kPanelColumns;  // [left, right]
    multiply("TN", left, right, m - left, 1, a + left, d_, right_a + left, d_, 0, product_, left);
    multiply("NN", left, right, left, -1, t, kPanelColumns, product_, left, 0, other_, left);
    multiply("NN", left, right, right, 1, other_, left, right_t, kPanelColumns, 0, corner,
             kPanelColumns);
    for (int64_t j = 0; j < left; ++j) {
      std::fill_n(t + j * kPanelColumns + left, right, T(0));
    }
  }

  void reduce_panel(int64_t first) const {
    const int64_t width = width_of(first), m = d_ - first;
    T* panel = a_ + first * d_ + first;
    factor(m, width, panel, t_of(first));
    reflect_columns(m, width, m - width, panel, t_of(first), panel + width * d_);
  }

  // Memory of the row-major q is Qᵀ, column-major: Z' = [I 0; 0 Z] (I - V Tᵀ Vᵀ), where Z is
  // what later panels have made below and right of here.
  void prepend_panel(int64_t first, T* q) const {
    const int64_t width = width_of(first), m = d_ - first, below = m - width;
    const T *v = a_ + first * d_ + first, *t = t_of(first);
    T* corner = q + first * d_ + first;
    T* z = corner + width * d_ + width;  // [below, below]
    // [0; Z] (-V Tᵀ), then times Vᵀ: its left columns are all that stands there.
    multiply("NN", below, width, below, 1, z, d_, v + width, d_, 0, product_, d_);
    multiply("NT", below, width, width, -1, product_, d_, t, kPanelColumns, 0, other_, d_);
    multiply("NT", below, width, width, 1, other_, d_, v, d_, 0, corner + width, d_);
    multiply("NT", below, below, width, 1, other_, d_, v + width, d_, 1, z, d_);
    // [I; 0] - V1 Tᵀ Vᵀ, the rows of this panel.
    multiply("NT", width, width, width, -1, v, d_, t, kPanelColumns, 0, other_, d_);
    multiply("NT", width, m, width, 1, other_, d_, v, d_, 0, corner, d_);
    for (int64_t i = 0; i < width; ++i) corner[i * d_ + i] += 1;
  }

  int64_t d_;
  T *a_, *t_, *product_, *other_;
  const Multiply& multiply_;
};

}  // namespace soap_fast
