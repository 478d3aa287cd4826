// Q of the QR of a square matrix by blocks of reflections, so that nearly all of the work is
// products. LAPACK's geqrf and orgqr do the same, with panels in which it is not.
//
// Source: Elmroth and Gustavson, Applying recursion to serial and parallel QR factorization leads
// to better performance, 2000. A panel is halved until a leaf takes it; V and T of
// (I - V1 T1 V1ᵀ)(I - V2 T2 V2ᵀ) = I - V T Vᵀ are V = [V1 V2], T = [T1, -T1 V1ᵀ V2 T2; 0, T2].
#pragma once

#include <algorithm>
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

// Columns of a panel, at most and for a matrix of d columns. ms on one thread of an AMD EPYC,
// float32 (MKL 2024.2, of which 16 columns get 96 GFLOP/s up to d = 192 and 70 at 1152):
//   d              96    160    192    320    384    640    896   1152
//   16 columns  0.047  0.166  0.269   1.09   1.84   8.33   22.9   50.8
//   32          0.052  0.176  0.284   1.10   1.84   8.07   21.9   46.3
//   48          0.059  0.191  0.302   1.14   1.90   8.15   21.7   45.6
constexpr int64_t kPanelLargest = 48;
constexpr int64_t panel_columns(int64_t d) { return d < 320 ? 16 : d < 800 ? 32 : kPanelLargest; }

// Elements of workspace for a matrix of d columns: T of each panel, two products, and a leaf's.
constexpr int64_t qr_workspace(int64_t d) {
  return (3 * kPanelLargest + kLeafColumns<float>)*(d + kPanelLargest);
}

// multiply(transpose_a, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc): c [m, n] = alpha a b +
// beta c, all row-major; aᵀ in place of a where `transpose_a`. Where beta is 0, what c held does
// not matter.
template <typename T, typename Multiply>
class BlockedQR {
 public:
  // `workspace` has room for qr_workspace(d).
  BlockedQR(int64_t d, T* a, T* workspace, const Multiply& multiply)
      : d_(d), panel_(panel_columns(d)), a_(a), t_(workspace), multiply_(multiply) {
    product_ = t_ + (d + kPanelLargest) * kPanelLargest;
    other_ = product_ + (d + kPanelLargest) * kPanelLargest;
    leaf_ = other_ + (d + kPanelLargest) * kPanelLargest;
  }

  // a [d, d], its columns scaled to a largest entry near 1, is lost; q [d, d] becomes the Q of
  // a = Q R, of any signs. Every finite matrix has one: columns that depend on earlier ones get an
  // orthonormal completion.
  void orthogonal_factor(T* q) {
    for (int64_t first = 0; first < d_; first += panel_) {
      const int64_t width = width_of(first), m = d_ - first;
      T* panel = a_ + first * d_ + first;
      factor(m, width, panel, t_of(first));
      reflect_columns(m, width, m - width, panel, t_of(first), panel + width);
    }
    for (int64_t first = (d_ - 1) / panel_ * panel_; first >= 0; first -= panel_) {
      prepend_panel(first, q);
    }
  }

 private:
  int64_t width_of(int64_t first) const { return std::min(panel_, d_ - first); }
  T* t_of(int64_t first) const { return t_ + first * panel_; }

  void multiply(bool transpose_a, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
                const T* b, int64_t ldb, T beta, T* c, int64_t ldc) const {
    if (m > 0 && n > 0) multiply_(transpose_a, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  }

  // b [m, right] = b - V (Tᵀ (Vᵀ b)) below its first n rows, for v [m, n], t [n, n], all within a:
  // those first rows are R and are not needed.
  void reflect_columns(int64_t m, int64_t n, int64_t right, const T* v, const T* t, T* b) const {
    multiply(true, n, right, m, 1, v, d_, b, d_, 0, product_, right);
    multiply(true, n, right, n, 1, t, panel_, product_, right, 0, other_, right);
    multiply(false, m - n, right, n, -1, v + n * d_, d_, other_, right, 1, b + n * d_, d_);
  }

  // V in place of a [m, n], T to t [n, n].
  void factor(int64_t m, int64_t n, T* a, T* t) const {
    constexpr int64_t kLeaf = kLeafColumns<T>;
    if (n <= kLeaf) return qr_leaf(m, n, a, d_, t, panel_, leaf_);
    const int64_t left = (n / 2 + kLeaf - 1) / kLeaf * kLeaf, right = n - left;
    T *right_a = a + left, *left_below = a + left * d_, *right_below = left_below + left;
    T *right_t = t + left * panel_ + left, *corner = t + left;
    factor(m, left, a, t);
    reflect_columns(m, left, right, a, t, right_a);
    for (int64_t i = 0; i < left; ++i) std::fill_n(right_a + i * d_, right, T(0));
    factor(m - left, right, right_below, right_t);
    multiply(true, left, right, m - left, 1, left_below, d_, right_below, d_, 0, product_, right);
    multiply(false, left, right, left, -1, t, panel_, product_, right, 0, other_, right);
    multiply(false, left, right, right, 1, other_, right, right_t, panel_, 0, corner, panel_);
    for (int64_t i = left; i < n; ++i) std::fill_n(t + i * panel_, left, T(0));
  }

  // Q = (I - V T Vᵀ) [I 0; 0 Z], where Z is what later panels have made below and right of here.
  void prepend_panel(int64_t first, T* q) const {
    const int64_t width = width_of(first), m = d_ - first, below = m - width;
    const T* v = a_ + first * d_ + first;
    T* corner = q + first * d_ + first;
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j < width; ++j) product_[i * m + j] = v[j * d_ + i];
    }
    multiply(true, width, below, below, 1, v + width * d_, d_, corner + width * d_ + width, d_, 0,
             product_ + width, m);
    multiply(false, width, m, width, 1, t_of(first), panel_, product_, m, 0, other_, m);
    for (int64_t i = 0; i < width; ++i) {
      std::fill_n(corner + i * d_, m, T(0));
      corner[i * d_ + i] = 1;
    }
    for (int64_t i = width; i < m; ++i) std::fill_n(corner + i * d_, width, T(0));
    multiply(false, m, m, width, -1, v, d_, other_, m, 1, corner, d_);
  }

  int64_t d_, panel_;
  T *a_, *t_, *product_, *other_, *leaf_;
  const Multiply& multiply_;
};

}  // namespace soap_fast
