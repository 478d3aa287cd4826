// refresh_ on the CPU: one factor per worker, products and QR by torch's BLAS and LAPACK.
//
// Householder QR of K Q and not the QR of the Cholesky factor of QᵀKQ: that is made of products,
// but of more than twice as many. One thread, ms, QR alone | the Cholesky route in products of
// d x d matrices each of which takes what is in brackets:
//   d       96             192            320            640            1152
//           0.21 (0.012)   0.67 (0.11)    1.98 (0.47)    11.4 (3.5)     56 (20)
// So QR costs 3 to 6 products where products are efficient, and the Cholesky route needs 5.6.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>

#include "refresh.h"
#include "refresh_small.h"
#include "serial_lapack.h"

namespace soap_fast {
namespace {

using torch::headeronly::ScalarType;

// From this size on factors are refreshed one after another with LAPACK's own threads; see
// eigh_cpu.cpp for what speaks against it below.
constexpr int64_t kLapackThreadsFrom = 2048;

// Up to this size a factor is refreshed without LAPACK. us per factor on one thread:
//   d                       2     3     5     8    12    16    20    24    32
//   float32  LAPACK      17.1  18.4  18.2  19.4  21.4  24.5  31.6  35.7  46.9
//            without      1.1   1.2   1.7   3.2   7.1  14.4  24.2  41.2  95.8
//   float64  LAPACK      18.3  18.1  18.9  19.5  22.9  25.1  29.8  30.4  38.5
//            without      1.1   1.2   1.7   3.4   6.8  13.1  22.8  37.5  84.7
constexpr int64_t kSmallUpTo = 20;

// Q of the QR of a matrix whose memory is column-major, as LAPACK wants it.
Tensor orthonormal_columns(const Tensor& a) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(a), 0};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::geqrf", "", stack.data(), TORCH_ABI_VERSION));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linalg_householder_product", "",
                                                      stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// out = a b, [d, d], into memory that is there already.
void multiply_into(const Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes over the reference that was returned
}

constexpr int64_t kTile = 16;  // a cache line of float32

// target [d, d], row-major = source [d, d], column-major.
template <typename T>
void transpose_into(T* target, const T* source, int64_t d) {
  for (int64_t top = 0; top < d; top += kTile) {
    for (int64_t left = 0; left < d; left += kTile) {
      for (int64_t row = top; row < std::min(d, top + kTile); ++row) {
        for (int64_t column = left; column < std::min(d, left + kTile); ++column) {
          target[row * d + column] = source[column * d + row];
        }
      }
    }
  }
}

// How the columns of Q are to be sorted, and how far Q is from diagonalising K.
struct Iterate {
  std::vector<int64_t> order;  // [d] by descending diag(QᵀKQ)
  double off_diagonal;         // |H - diag H|_F / |H|_F with H = QᵀKQ; 0 for a zero factor
  bool finite;
};

// From the rows K q_j of QᵀK [d, d] and from Q [d, d].
template <typename T>
Iterate examine(const T* rows, const T* q, int64_t d) {
  std::vector<double> eigenvalues(d, 0.0), norms(d, 0.0);
  for (int64_t row = 0; row < d; ++row) {
    for (int64_t column = 0; column < d; ++column) {
      const double entry = rows[row * d + column];
      norms[column] += entry * entry;
    }
  }
  for (int64_t top = 0; top < d; top += kTile) {  // q is walked across its rows
    const int64_t bottom = std::min(d, top + kTile);
    for (int64_t j = 0; j < d; ++j) {
      double even = 0, odd = 0;  // two sums, or each addition waits for the last
      int64_t i = top;
      for (; i + 1 < bottom; i += 2) {
        even += static_cast<double>(rows[j * d + i]) * q[i * d + j];
        odd += static_cast<double>(rows[j * d + i + 1]) * q[(i + 1) * d + j];
      }
      if (i < bottom) even += static_cast<double>(rows[j * d + i]) * q[i * d + j];
      eigenvalues[j] += even + odd;
    }
  }
  const double norm = std::accumulate(norms.begin(), norms.end(), 0.0);
  double diagonal = 0;
  for (const double eigenvalue : eigenvalues) diagonal += eigenvalue * eigenvalue;
  Iterate iterate{std::vector<int64_t>(d), 0.0, std::isfinite(norm)};
  // |H|_F = |K Q|_F, since Q is orthogonal; H itself would cost another product.
  if (norm > 0) iterate.off_diagonal = std::sqrt(std::max(0.0, 1 - diagonal / norm));
  std::iota(iterate.order.begin(), iterate.order.end(), 0);
  if (iterate.finite) {
    std::stable_sort(iterate.order.begin(), iterate.order.end(),
                     [&](int64_t a, int64_t b) { return eigenvalues[a] > eigenvalues[b]; });
  }
  return iterate;
}

// One factor of one stack, and where its results go.
struct Task {
  size_t stack;
  int64_t position;  // in the selection
  int64_t slot;      // in the stack
  int64_t d;
};

// The memory that one task writes, but for its basis.
template <typename T>
struct Result {
  int64_t* order;  // [d]
  Tensor carry;    // [d, d]
  int64_t* outcome;
  T* off_diagonal;
};

// Without LAPACK and without torch's dispatch, which take longer than the work on small factors.
template <typename T>
Outcome refresh_without_lapack(const Tensor& factors, const Tensor& bases, const Task& task,
                               double tolerance, const Result<T>& result) {
  const int d = static_cast<int>(task.d);
  const T* source = factors.const_data_ptr<T>() + task.slot * factors.stride(0);
  std::vector<T> memory(refresh_workspace(d) + d * d);
  T* factor = memory.data() + refresh_workspace(d);
  for (int row = 0; row < d; ++row) {
    for (int column = 0; column < d; ++column) {
      factor[row * d + column] = source[row * factors.stride(1) + column * factors.stride(2)];
    }
  }
  return refresh_by_householder(LoneTeam(), d, factor,
                                bases.mutable_data_ptr<T>() + task.slot * d * d,
                                static_cast<T>(tolerance), memory.data(), result.order,
                                result.carry.template mutable_data_ptr<T>(), result.off_diagonal);
}

template <typename T>
void refresh_one(Tensor factors, Tensor bases, const Task& task, bool allowed, double tolerance,
                 const Result<T>& result) {
  const int64_t d = task.d;
  const auto leave = [&](Outcome why) {
    *result.outcome = static_cast<int64_t>(why);
    std::iota(result.order, result.order + d, 0);
    T* carry = result.carry.template mutable_data_ptr<T>();
    std::fill_n(carry, d * d, T(0));
    for (int64_t i = 0; i < d; ++i) carry[i * d + i] = 1;
  };
  *result.off_diagonal = std::numeric_limits<T>::quiet_NaN();
  if (!allowed) return leave(Outcome::kLeftOut);
  if (d <= kSmallUpTo) {
    const Outcome outcome = refresh_without_lapack<T>(factors, bases, task, tolerance, result);
    if (outcome != Outcome::kRefreshed) return leave(outcome);
    *result.outcome = static_cast<int64_t>(outcome);
    return;
  }

  const Tensor factor = torch::stable::select(factors, 0, task.slot);     // [d, d], symmetric
  Tensor basis = torch::stable::select(bases, 0, task.slot);              // [d, d]
  const Tensor basis_transposed = torch::stable::transpose(basis, 0, 1);  // [d, d]
  // QᵀK has the columns of K Q as its rows: sorting them moves whole rows, and LAPACK, which wants
  // columns contiguous, takes them as they lie.
  const Tensor product = torch::stable::matmul(basis_transposed, factor);  // [d, d]
  const T* rows = product.const_data_ptr<T>();
  const Iterate iterate = examine(rows, basis.const_data_ptr<T>(), d);
  if (!iterate.finite) return leave(Outcome::kFailed);
  *result.off_diagonal = static_cast<T>(iterate.off_diagonal);
  const bool zero = std::all_of(rows, rows + d * d, [](T entry) { return entry == 0; });
  if (zero || (tolerance > 0 && iterate.off_diagonal <= tolerance)) return leave(Outcome::kKept);

  const Tensor sorted = torch::stable::new_empty(product, {d, d});
  T* target = sorted.mutable_data_ptr<T>();
  for (const int64_t row : iterate.order) target = std::copy_n(rows + row * d, d, target);
  Tensor sorted_columns = sorted;
  const Tensor renewed = orthonormal_columns(torch::stable::transpose(sorted_columns, 0, 1));
  multiply_into(result.carry, basis_transposed, renewed);
  // A column of `renewed` that is not finite makes the whole column of the product so.
  const T* first_row = result.carry.template const_data_ptr<T>();
  if (!std::all_of(first_row, first_row + d, [](T entry) { return std::isfinite(entry); })) {
    return leave(Outcome::kFailed);
  }
  std::copy_n(iterate.order.begin(), d, result.order);
  if (renewed.stride(0) == 1) {  // as LAPACK leaves it
    transpose_into(basis.mutable_data_ptr<T>(), renewed.const_data_ptr<T>(), d);
  } else {
    torch::stable::copy_(basis, renewed);
  }
  *result.outcome = static_cast<int64_t>(Outcome::kRefreshed);
}

std::vector<Task> plan(const TensorList& factors, const TensorList& selections) {
  std::vector<Task> tasks;
  for (size_t s = 0; s < factors.size(); ++s) {
    const int64_t n = factors[s].size(0), d = factors[s].size(1), k = selections[s].size(0);
    const int32_t* indices = selections[s].const_data_ptr<int32_t>();
    std::vector<bool> seen(n, false);
    for (int64_t i = 0; i < k; ++i) {
      const int64_t slot = indices[i * selections[s].stride(0)];
      check(slot >= 0 && slot < n, "refresh_: selections[", s, "][", i, "]=", slot,
            " is outside [0, ", n, "), the indices of factors[", s, "]");
      check(!seen[slot], "refresh_: selections[", s, "] names ", slot,
            " twice; a basis can be refreshed once in a call");
      seen[slot] = true;
      if (d > 0) tasks.push_back({s, i, slot, d});
    }
  }
  // Largest first, each worker takes the next: none is left with a large factor at the end.
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.d > b.d; });
  return tasks;
}

}  // namespace

void refresh_cpu(TensorList factors, TensorList bases, TensorList selections, TensorList allowed,
                 double tolerance, TensorList orders, TensorList carries, TensorList outcomes,
                 TensorList off_diagonals) {
  check_refresh(factors, bases, selections, allowed, orders, carries, outcomes, off_diagonals);
  const std::vector<Task> tasks = plan(factors, selections);

  const auto run = [&](const Task& task) {
    const size_t s = task.stack;
    const int64_t i = task.position, d = task.d;
    const bool may = allowed[s].const_data_ptr<bool>()[i * allowed[s].stride(0)];
    const auto refresh_as = [&](auto zero) {
      using T = decltype(zero);
      Tensor stack_carries = carries[s];
      const Result<T> result{
          orders[s].mutable_data_ptr<int64_t>() + i * d, torch::stable::select(stack_carries, 0, i),
          outcomes[s].mutable_data_ptr<int64_t>() + i, off_diagonals[s].mutable_data_ptr<T>() + i};
      refresh_one<T>(factors[s], bases[s], task, may, tolerance, result);
    };
    factors[s].scalar_type() == ScalarType::Double ? refresh_as(0.0) : refresh_as(0.0f);
  };

  size_t first = 0;
  for (; first < tasks.size() && tasks[first].d >= kLapackThreadsFrom; ++first) run(tasks[first]);
  std::atomic<size_t> next{first};
  torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t, int64_t) {
    const SerialLapack serial;
    for (size_t i = next++; i < tasks.size(); i = next++) run(tasks[i]);
  });
}

}  // namespace soap_fast
