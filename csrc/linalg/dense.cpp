#include "linalg/dense.h"

#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "common.h"
#include "linalg/qr.h"

namespace soap_fast {
namespace {

template <typename T>
using Gemm = void (*)(const char* transpose_a, const char* transpose_b, const int* m, const int* n,
                      const int* k, const T* alpha, const T* a, const int* lda, const T* b,
                      const int* ldb, const T* beta, T* c, const int* ldc);

// MKL's own function, of the copy that libtorch_cpu contains or loads, with 32-bit integers as
// torch links it; nullptr with another BLAS, which share_out() would not keep to one thread. By
// torch's dispatcher a product takes 2 us more, and a QR of 192 columns is 68 products.
template <typename T>
Gemm<T> mkl_gemm() {
  static const Gemm<T> found = [] {
    void* gemm = dlsym(RTLD_DEFAULT, sizeof(T) == 4 ? "sgemm_" : "dgemm_");
    void* of_mkl = dlsym(RTLD_DEFAULT, "MKL_Set_Num_Threads_Local");
    Dl_info one{}, other{};
    const bool together = gemm && of_mkl && dladdr(gemm, &one) && dladdr(of_mkl, &other) &&
                          one.dli_fbase == other.dli_fbase;
    return together ? reinterpret_cast<Gemm<T>>(gemm) : nullptr;
  }();
  return found;
}

// c = alpha a b + beta c, row-major. That memory is the transpose, column-major: cᵀ = bᵀ aᵀ.
template <typename T>
void call_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha,
               const T* a, int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  const int sizes[] = {int(m), int(n), int(k), int(lda), int(ldb), int(ldc)};
  mkl_gemm<T>()(transpose_b ? "T" : "N", transpose_a ? "T" : "N", &sizes[1], &sizes[0], &sizes[2],
                &alpha, b, &sizes[4], a, &sizes[3], &beta, c, &sizes[5]);
}

// The same with b as it is, as qr.h calls it.
template <typename T>
void call_gemm_of_qr(bool transpose_a, int64_t m, int64_t n, int64_t k, T alpha, const T* a,
                     int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  call_gemm<T>(transpose_a, false, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// Memory as a tensor [d, d] with these strides; torch neither owns nor changes it.
template <typename T>
Tensor as_tensor(const T* memory, int64_t d, int64_t row_stride, int64_t column_stride) {
  using torch::headeronly::DeviceType;
  using torch::headeronly::ScalarType;
  return torch::stable::from_blob(const_cast<T*>(memory), {d, d}, {row_stride, column_stride},
                                  torch::stable::Device(DeviceType::CPU),
                                  sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double);
}

template <typename T>
void multiply_by_torch(bool transpose_a, int64_t d, const T* a, const T* b, T* c) {
  const Tensor left = transpose_a ? as_tensor(a, d, 1, d) : as_tensor(a, d, d, 1);
  const Tensor right = as_tensor(b, d, d, 1), product = as_tensor(c, d, d, 1);
  std::array<StableIValue, 3> stack{torch::stable::detail::from(left),
                                    torch::stable::detail::from(right),
                                    torch::stable::detail::from(product)};
  call_operator("aten::mm", "out", stack);
  torch::stable::detail::to<Tensor>(stack[0]);  // takes over the reference that was returned
}

template <typename T>
void orthogonal_factor_by_torch(int64_t d, const T* a, T* q) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(as_tensor(a, d, d, 1)), 0};
  call_operator("aten::geqrf", "", stack);
  call_operator("aten::linalg_householder_product", "", stack);
  Tensor target = as_tensor(q, d, d, 1);
  torch::stable::copy_(target, torch::stable::detail::to<Tensor>(stack[0]));
}

}  // namespace

template <typename T>
void multiply(bool transpose_a, int64_t d, const T* a, const T* b, T* c) {
  if (!mkl_gemm<T>()) return multiply_by_torch(transpose_a, d, a, b, c);
  call_gemm<T>(transpose_a, false, d, d, d, 1, a, d, b, d, 0, c, d);
}

bool has_gemm() { return mkl_gemm<float>() != nullptr; }

void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
          const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
          int64_t ldc) {
  call_gemm<float>(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

template <typename T>
void orthogonal_factor(int64_t d, T* a, T* q, T* workspace) {
  if (!mkl_gemm<T>()) return orthogonal_factor_by_torch(d, a, q);
  BlockedQR<T, decltype(&call_gemm_of_qr<T>)>(d, a, workspace, call_gemm_of_qr<T>)
      .orthogonal_factor(q);
}

int64_t orthogonal_factor_workspace(int64_t d) { return qr_workspace(d); }

template void multiply(bool, int64_t, const float*, const float*, float*);
template void multiply(bool, int64_t, const double*, const double*, double*);
template void orthogonal_factor(int64_t, float*, float*, float*);
template void orthogonal_factor(int64_t, double*, double*, double*);

}  // namespace soap_fast
