// Householder QR of K Q and not the QR of the Cholesky factor of QᵀKQ: that is made of products,
// but of more than twice as many. One thread, ms, QR alone | the Cholesky route in products of
// d x d matrices each of which takes what is in brackets (LAPACK's QR, an Intel Xeon):
//   d       96             192            320            640            1152
//           0.21 (0.012)   0.67 (0.11)    1.98 (0.47)    11.4 (3.5)     56 (20)
// So QR costs 3 to 6 products where products are efficient, and the Cholesky route needs 5.6.
#include "refresh/factor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "linalg/dense.h"
#include "linalg/householder.h"
#include "linalg/zero_rows.h"
#include "refresh/phases/small.h"
#include "refresh/rayleigh.h"

namespace soap_fast {
namespace {

// Up to this size a factor is refreshed without BLAS. us per factor on one thread of an AMD EPYC:
//   d                     5      6      7      8      9     10     12     16     20
//   float32  BLAS       1.1    1.3    1.6    1.4    1.9    2.1    2.0    2.5    4.9
//            without    0.7    0.9    1.3    1.6    2.2    2.9    4.5   10.0   19.5
//   float64  BLAS       1.1    1.3    1.5    1.5    2.4    2.9    3.1    5.3    8.7
//            without    0.7    0.9    1.2    1.5    2.0    2.6    4.0    9.0   17.4
constexpr int64_t kSmallUpTo = 8;

// Hands out parts of a worker's memory, each aligned.
template <typename T>
class Parts {
 public:
  Parts(Scratch& scratch, int64_t elements, int64_t parts) {
    next_ = scratch.at_least(elements * sizeof(T) + parts * kAlignment);
  }
  template <typename U = T>
  U* take(int64_t elements) {
    const auto address = reinterpret_cast<uintptr_t>(next_);
    char* aligned = next_ + (kAlignment - address % kAlignment) % kAlignment;
    next_ = aligned + elements * sizeof(U);
    return reinterpret_cast<U*>(aligned);
  }

 private:
  char* next_;
};

bool is_aligned(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % kAlignment == 0;
}

// The factor row-major and aligned: as it lies, or a copy in `room`.
template <typename T>
const T* gathered(int64_t d, const FactorView<T>& factor, T* room) {
  if (factor.row_stride == d && factor.column_stride == 1) {
    if (is_aligned(factor.data)) return factor.data;
    std::memcpy(room, factor.data, d * d * sizeof(T));
    return room;
  }
  for (int64_t row = 0; row < d; ++row) {
    for (int64_t column = 0; column < d; ++column) {
      room[row * d + column] = factor.data[row * factor.row_stride + column * factor.column_stride];
    }
  }
  return room;
}

// Without BLAS, whose calls take longer than the work on a small factor.
template <typename T>
Outcome without_blas(int64_t d, const FactorView<T>& factor, T* basis, double tolerance,
                     const FactorResult<T>& result, Scratch& scratch) {
  const int size = static_cast<int>(d);
  Parts<T> parts(scratch, refresh_workspace(size) + d * d, 2);
  const T* k = gathered(d, factor, parts.take(d * d));
  return refresh_by_householder(LoneTeam(), size, k, basis, static_cast<T>(tolerance),
                                parts.take(refresh_workspace(size)), result.order, result.carry,
                                result.turned, result.off_diagonal);
}

void sort_descending(int64_t d, const double* eigenvalues, int64_t* order) {
  std::iota(order, order + d, 0);
  std::stable_sort(order, order + d,
                   [&](int64_t a, int64_t b) { return eigenvalues[a] > eigenvalues[b]; });
}

// Columns that K makes zero because they lie in its zero rows come last, whatever the others'
// signs.
template <typename T>
void put_zero_rows_last(int64_t d, int64_t n, const T* q, const int64_t* places,
                        double* eigenvalues) {
  for (int64_t j = 0; n < d && j < d; ++j) {
    if (is_in_zero_rows(d, q, j, n, places)) eigenvalues[j] = -Float<double>::infinity;
  }
}

// sorted [n, n] = the first n columns of kq [d, d] by `order` without its zero rows, each scaled to
// a largest entry near 1 by a power of two, on which no Q depends, to spare squares their range.
template <typename T>
void sort_columns(int64_t d, int64_t n, const T* kq, const int64_t* places, const int64_t* order,
                  const T* largest, T* scales, T* sorted) {
  for (int64_t column = 0; column < n; ++column) {
    scales[column] = householder::safe_scale(largest[order[column]]);
  }
  for (int64_t row = 0; row < d; ++row) {
    if (places[row] >= n) continue;
    const T* source = kq + row * d;
    T* target = sorted + places[row] * n;
    for (int64_t column = 0; column < n; ++column) {
      target[column] = source[order[column]] * scales[column];
    }
  }
}

template <typename T>
Outcome with_blas(int64_t d, const FactorView<T>& factor, T* basis, double tolerance,
                  const FactorResult<T>& result, Scratch& scratch) {
  const int64_t workspace = orthogonal_factor_workspace(d);
  Parts<T> parts(scratch, 4 * d * d + workspace + 5 * d, 8);  // a double is two floats
  T *kq = parts.take(d * d), *sorted = parts.take(d * d), *work = parts.take(workspace);
  double* eigenvalues = parts.template take<double>(d);
  int64_t* places = parts.template take<int64_t>(d);
  T* largest = parts.take(d);
  const T* k = gathered(d, factor, parts.take(d * d));
  const T* q = gathered(d, FactorView<T>{basis, d, 1}, parts.take(d * d));

  multiply(false, d, k, q, kq);
  const Rayleigh found = rayleigh(d, kq, q, eigenvalues, largest);
  if (!std::isfinite(found.squares)) return Outcome::kFailed;
  const double share =
      found.squares > 0 ? std::sqrt(std::max(0.0, 1 - found.diagonal / found.squares)) : 0;
  *result.off_diagonal = static_cast<T>(share);
  const bool zero = std::all_of(largest, largest + d, [](T entry) { return entry == 0; });
  if (zero || (tolerance > 0 && share <= tolerance)) return Outcome::kKept;

  const int64_t n = place_rows(LoneTeam(), d, k, d, int64_t(1), places);
  put_zero_rows_last(d, n, q, places, eigenvalues);
  sort_descending(d, eigenvalues, result.order);
  sort_columns(d, n, kq, places, result.order, largest, work, sorted);
  T *renewed = kq, *spare = sorted;
  orthogonal_factor(n, sorted, renewed, work);
  if (n < d) {
    std::swap(renewed, spare);
    for (int64_t e = 0; e < d * d; ++e) {
      renewed[e] = with_unit_vectors(spare, n, n, places, e / d, e % d);
    }
  }
  T* carry = is_aligned(result.carry) && !result.turned ? result.carry : spare;
  multiply(true, d, q, renewed, carry);
  // A column of `renewed` that is not finite makes the whole column of the product so.
  if (!std::all_of(carry, carry + d, [](T entry) { return std::isfinite(entry); })) {
    return Outcome::kFailed;
  }
  if (result.turned) {
    for (int64_t e = 0; e < d * d; ++e) result.carry[e % d * d + e / d] = carry[e];
  } else if (carry != result.carry) {
    std::memcpy(result.carry, carry, d * d * sizeof(T));
  }
  std::memcpy(basis, renewed, d * d * sizeof(T));
  return Outcome::kRefreshed;
}

}  // namespace

template <typename T>
void leave_factor(int64_t d, Outcome why, const FactorResult<T>& result) {
  *result.outcome = static_cast<int64_t>(why);
  std::iota(result.order, result.order + d, 0);
  std::fill_n(result.carry, d * d, T(0));
  for (int64_t i = 0; i < d; ++i) result.carry[i * d + i] = 1;
}

template <typename T>
void refresh_factor(int64_t d, const FactorView<T>& factor, T* basis, double tolerance,
                    const FactorResult<T>& result, Scratch& scratch) {
  *result.off_diagonal = std::numeric_limits<T>::quiet_NaN();
  const auto refresh = d <= kSmallUpTo ? without_blas<T> : with_blas<T>;
  const Outcome outcome = refresh(d, factor, basis, tolerance, result, scratch);
  if (outcome != Outcome::kRefreshed) return leave_factor(d, outcome, result);
  *result.outcome = static_cast<int64_t>(outcome);
}

template void leave_factor(int64_t, Outcome, const FactorResult<float>&);
template void leave_factor(int64_t, Outcome, const FactorResult<double>&);
template void refresh_factor(int64_t, const FactorView<float>&, float*, double,
                             const FactorResult<float>&, Scratch&);
template void refresh_factor(int64_t, const FactorView<double>&, double*, double,
                             const FactorResult<double>&, Scratch&);

}  // namespace soap_fast
