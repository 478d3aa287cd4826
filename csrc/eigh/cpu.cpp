// eigh on the CPU: LAPACK through torch, many small factors side by side, the smallest by
// rotations.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "eigh/by_jacobi.h"
#include "eigh/eigh.h"
#include "linalg/zero_rows.h"
#include "workers.h"

namespace soap_fast {
namespace {

// From this size on factors are solved one after another with LAPACK's own threads. float32, MKL,
// 2 threads, ms for one factor alone | for a pair of factors:
//   d                 1024      1280       1920       2560
//   LAPACK threads    66 | 131    - | 180  284 | 535  692 | 1433
//   side by side      97 |  98    - | 160  509 | 513 1243 | 1242
// They cost pairs an eighth at most from 1280 on, and gain a lone factor up to 1.8 times; but they
// wait for each other so often that where something else keeps a core busy one factor of 1280 took
// 10 to 17 s. So they are left to sizes that are slow enough on one thread to be worth that risk.
constexpr int64_t kLapackThreadsFrom = 2048;

// Up to this size Jacobi's rotations are faster than a call of LAPACK for each factor. us per
// factor on one thread of an AMD EPYC:
//   d                    9     10     11     12     13     14     16     20
//   float32  LAPACK   12.4   13.5   14.7   15.8   17.7   19.3   22.0   29.8
//            Jacobi    7.4    8.6   13.8   15.1   22.7   25.4   37.9   76.0
//   float64  LAPACK   14.8   16.1   17.9   19.0   20.7   22.2   26.2   35.1
//            Jacobi    9.1   10.5   16.4   18.1   26.9   30.1   46.7   91.4
// Several factors in a call of LAPACK would halve its time at d = 9, but there all but the first
// lie at any address, on which MKL's bits depend on that processor.
constexpr int64_t kJacobiUpTo = 12;

// Elements of factors that are one piece of work for Jacobi's rotations.
constexpr int64_t kChunkElements = 4096;

// Factors [first, first + count) of one stack's selection: one piece of work.
struct Chunk {
  size_t stack;
  int64_t d;
  int64_t first;
  int64_t count;
};

// eigh reads the lower triangle alone, and so do we.
template <typename T>
T scale_of(const T* factor, int64_t row_stride, int64_t column_stride, int64_t d) {
  using Limits = std::numeric_limits<T>;
  T largest = 0;
  bool finite = true;
  for (int64_t row = 0; row < d; ++row) {
    for (int64_t column = 0; column <= row; ++column) {
      const T magnitude = std::abs(factor[row * row_stride + column * column_stride]);
      finite &= magnitude <= Limits::max();  // false for NaN, which std::max would drop
      largest = std::max(largest, magnitude);
    }
  }
  return scale_for(finite ? largest : Limits::infinity(), Limits::min(), Limits::max());
}

// target [n, n], row-major, with the columns of `vectors` in reverse. In tiles, since LAPACK's
// columns are contiguous: one of the two is walked across its rows.
template <typename T>
void mirror_columns(const T* vectors, int64_t row_stride, int64_t column_stride, int64_t n,
                    T* target) {
  constexpr int64_t kTile = 16;  // a cache line of float32
  for (int64_t top = 0; top < n; top += kTile) {
    for (int64_t left = 0; left < n; left += kTile) {
      const int64_t bottom = std::min(n, top + kTile), right = std::min(n, left + kTile);
      for (int64_t row = top; row < bottom; ++row) {
        for (int64_t column = left; column < right; ++column) {
          target[row * n + column] = vectors[row * row_stride + (n - 1 - column) * column_stride];
        }
      }
    }
  }
}

// basis [d, d] from the small one [n, n] that stands at its beginning.
template <typename T>
void spread_rows(int64_t d, int64_t n, const std::vector<int64_t>& places, T* basis) {
  const std::vector<T> small(basis, basis + n * n);
  for (int64_t e = 0; e < d * d; ++e) {
    basis[e] = with_unit_vectors(small.data(), n, n, places.data(), e / d, e % d);
  }
}

// One factor: eigenvalues [d] and basis [d, d], both descending, its zero rows and columns apart.
template <typename T>
void solve_factor(const Tensor& stack, int64_t index, T* values, T* basis) {
  const int64_t d = stack.size(1), row_stride = stack.stride(1), column_stride = stack.stride(2);
  const T* factor = stack.const_data_ptr<T>() + index * stack.stride(0);
  const T scale = scale_of(factor, row_stride, column_stride, d);
  std::vector<int64_t> places(d);
  const int64_t n =
      scale > 0 ? place_rows(LoneTeam(), d, factor, row_stride, column_stride, places.data()) : 0;
  const Tensor packed = torch::stable::new_zeros(stack, {1, n, n});
  T* target = packed.mutable_data_ptr<T>();
  for (int64_t row = 0; row < d && n > 0; ++row) {
    if (places[row] >= n) continue;
    for (int64_t column = 0; column <= row; ++column) {
      if (places[column] >= n) continue;
      target[places[row] * n + places[column]] =
          factor[row * row_stride + column * column_stride] * scale;
    }
  }

  const Eigenpairs pairs = solve(packed);

  const T* ascending = pairs.values.const_data_ptr<T>();
  std::fill_n(values, d, T(0));
  if (n == 0 || std::isnan(ascending[0])) {
    if (scale != T(kZeroFactor)) std::fill_n(values, d, std::numeric_limits<T>::quiet_NaN());
    std::fill_n(basis, d * d, T(0));
    for (int64_t row = 0; row < d; ++row) basis[row * d + row] = 1;
    return;
  }
  for (int64_t column = 0; column < n; ++column) values[column] = ascending[n - 1 - column] / scale;
  mirror_columns(pairs.vectors.const_data_ptr<T>(), pairs.vectors.stride(1),
                 pairs.vectors.stride(2), n, basis);
  if (n < d) spread_rows(d, n, places, basis);
}

// Solves one chunk and writes eigenvalues [count, d] and bases [count, d, d], both descending.
template <typename T>
void solve_chunk(const Tensor& stack, const Tensor& selection, const Chunk& chunk, T* values,
                 T* bases) {
  const int32_t* indices = selection.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < chunk.count; ++i) {
    solve_factor(stack, indices[(chunk.first + i) * selection.stride(0)], values + i * chunk.d,
                 bases + i * chunk.d * chunk.d);
  }
}

// The same without LAPACK, for small d.
template <typename T>
void solve_chunk_by_jacobi(const Tensor& stack, const Tensor& selection, const Chunk& chunk,
                           T* values, T* bases) {
  const int d = static_cast<int>(chunk.d);
  const int32_t* indices = selection.const_data_ptr<int32_t>();
  std::vector<T> workspace(eigh_workspace(d));
  for (int64_t i = 0; i < chunk.count; ++i, values += d, bases += d * d) {
    const int64_t index = indices[(chunk.first + i) * selection.stride(0)];
    eigh_by_jacobi(LoneTeam(), d, stack.const_data_ptr<T>() + index * stack.stride(0),
                   stack.stride(1), stack.stride(2), workspace.data(), values, bases);
  }
}

void check_indices(const Tensor& stack, const Tensor& selection, size_t s) {
  const int32_t* indices = selection.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < selection.size(0); ++i) {
    const int64_t index = indices[i * selection.stride(0)];
    check(index >= 0 && index < stack.size(0), "eigh: selections[", s, "][", i, "]=", index,
          " is outside [0, ", stack.size(0), "), the indices of factors[", s, "]");
  }
}

}  // namespace

Eigh eigh_cpu(TensorList factors, TensorList selections) {
  check_arguments(factors, selections);
  for (size_t s = 0; s < factors.size(); ++s) check_indices(factors[s], selections[s], s);

  Eigh results;
  auto& [eigenvalues, bases] = results;
  std::vector<Chunk> alone, side_by_side;  // which of them, and the chunk's size, depend on d alone
  for (size_t s = 0; s < factors.size(); ++s) {
    auto [stack_values, stack_bases] = new_results(factors[s], selections[s]);
    eigenvalues.push_back(stack_values);
    bases.push_back(stack_bases);
    const int64_t d = factors[s].size(1), k = selections[s].size(0);
    if (d == 0) continue;
    const int64_t together = d <= kJacobiUpTo ? std::max<int64_t>(1, kChunkElements / (d * d)) : 1;
    for (int64_t first = 0; first < k; first += together) {
      auto& route = d >= kLapackThreadsFrom ? alone : side_by_side;
      route.push_back({s, d, first, std::min(together, k - first)});
    }
  }

  const auto run = [&](const Chunk& chunk) {
    const Tensor& stack = factors[chunk.stack];
    const auto solve_as = [&](auto zero) {
      using T = decltype(zero);
      const auto solve = chunk.d <= kJacobiUpTo ? solve_chunk_by_jacobi<T> : solve_chunk<T>;
      solve(stack, selections[chunk.stack], chunk,
            eigenvalues[chunk.stack].mutable_data_ptr<T>() + chunk.first * chunk.d,
            bases[chunk.stack].mutable_data_ptr<T>() + chunk.first * chunk.d * chunk.d);
    };
    stack.scalar_type() == torch::headeronly::ScalarType::Double ? solve_as(0.0) : solve_as(0.0f);
  };

  for (const Chunk& chunk : alone) run(chunk);

  // Largest first.
  std::stable_sort(side_by_side.begin(), side_by_side.end(), [](const Chunk& a, const Chunk& b) {
    return a.count * a.d * a.d * a.d > b.count * b.d * b.d * b.d;
  });
  share_out(0, static_cast<int64_t>(side_by_side.size()), torch::stable::get_num_threads(),
            [&](int64_t piece, int64_t) { run(side_by_side[piece]); });
  return results;
}

}  // namespace soap_fast
