// The CPU's blocked QR on hard matrices, with a plain product in place of BLAS. Errors in units of
// eps · sqrt(d), bounds twice what they were.
#include "linalg/qr.h"

#include "linalg/householder.h"
#include "report.h"

namespace {

template <typename T>
void multiply(bool transpose_a, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
              const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      T total = 0;
      for (int64_t l = 0; l < k; ++l) {
        total += (transpose_a ? a[l * lda + i] : a[i * lda + l]) * b[l * ldb + j];
      }
      T& target = c[i * ldc + j];  // as in BLAS, what it held does not matter where beta is 0
      target = alpha * total + (beta == 0 ? T(0) : beta * target);
    }
  }
}

template <typename T>
void check_qr(const std::string& name, const Matrix<T>& a) {
  const int64_t d = a.rows;
  const T garbage = std::numeric_limits<T>::quiet_NaN();
  std::vector<T> workspace(soap_fast::qr_workspace(d), garbage);
  Matrix<T> scaled = a, q(d, d);
  for (int64_t j = 0; j < d; ++j) {
    T largest = 0;
    for (int64_t i = 0; i < d; ++i) largest = std::max(largest, std::fabs(a(i, j)));
    for (int64_t i = 0; i < d; ++i) scaled(i, j) *= soap_fast::householder::safe_scale(largest);
  }
  std::fill(q.entries.begin(), q.entries.end(), garbage);
  soap_fast::BlockedQR<T, decltype(&multiply<T>)>(d, scaled.data(), workspace.data(), multiply<T>)
      .orthogonal_factor(q.data());
  expect<T>("qr: QᵀQ - I", 1, not_orthogonal(q), unit_of<T>(d), 5, name, d);
  expect<T>("qr: R below its diagonal", 1, below_diagonal(q, a), unit_of<T>(d), 4, name, d);
}

template <typename T>
void check_size(int64_t d) {
  for (const auto& [name, k] : factors<T>(d)) check_qr(name, k);
  Matrix<T> graded = random_matrix<T>(d, d, 10);
  check_qr("any matrix", graded);
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < d; ++j) {
      graded(i, j) *= j % 4 == 2 ? T(0) : T(std::pow(10., -28. * double(j) / double(d)));
    }
  }
  check_qr("28 decades, zero columns", graded);
}

}  // namespace

int main() {
  // Around a leaf's columns, 16 in float32 and 8 in float64, and a panel's 16; 340: panels of 32.
  for (const int64_t d : {1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 63, 64, 65, 100, 130}) {
    check_size<float>(d);
    check_size<double>(d);
  }
  check_qr("any matrix", random_matrix<float>(340, 340, 10));
  check_qr("any matrix", random_matrix<double>(340, 340, 10));
  return report("qr");
}
