// Every algorithm that CUDA kernels run with a team of threads, run by one thread and by several:
// hard matrices of many sizes, errors in units of eps · sqrt(d), the worst printed beside its
// bound, twice what it was. Built with sanitizers by .ci/check_sanitizers.sh, and by hand with
//   c++ -std=c++17 -O2 -Icsrc tests/native/teams.cpp -pthread && ./a.out
// An argument "races" leaves out what one thread does, for ThreadSanitizer.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "apart.h"
#include "eigh/by_jacobi.h"
#include "eigh/pack.h"
#include "linalg/cholesky.h"
#include "linalg/householder.h"
#include "matrices.h"
#include "refresh/phases/small.h"
#include "report.h"

namespace {

using soap_fast::LoneTeam;

template <typename T>
void check_eigh(int size, const std::string& name, const Matrix<T>& k) {
  const int d = int(k.rows);
  const Real unit = unit_of<T>(d), norm = norm_of(k);
  std::vector<T> workspace(soap_fast::eigh_workspace(d)), values(d);
  Matrix<T> basis(d, d);
  with_team(size, [&](const auto& team) {
    soap_fast::eigh_by_jacobi(team, d, k.data(), d, 1, workspace.data(), values.data(),
                              basis.data());
  });
  check_apart("eigh: zero rows apart", name, k, basis);
  expect<T>("eigh: QᵀQ - I", size, not_orthogonal(basis), unit, 4, name, d);
  Real squares = 0;
  for (int i = 0; i < d; ++i) {
    demand(i == 0 || values[i] <= values[i - 1], "eigh: descending", name, d);
    for (int j = 0; j < d; ++j) {
      Real total = k(i, j);
      for (int c = 0; c < d; ++c) total -= Real(basis(i, c)) * values[c] * basis(j, c);
      squares += total * total;
    }
  }
  const Real residual = norm > 0 ? std::sqrt(squares) / norm : std::sqrt(squares);
  expect<T>("eigh: |K - Q diag Qᵀ| / |K|", size, residual, unit, 3.5, name, d);
}

// What CUDA hands to a library's solver and makes of its answer, with rotations as the solver.
template <typename T>
void check_packed(const std::string& name, const Matrix<T>& k) {
  const int d = int(k.rows), ld = d;
  std::vector<int32_t> places(d);
  const int64_t n = soap_fast::place_rows(LoneTeam(), d, k.data(), d, 1, places.data());
  const T scale =
      soap_fast::scale_for(soap_fast::largest_of(LoneTeam(), d, k.data(), d, 1),
                           std::numeric_limits<T>::min(), std::numeric_limits<T>::max());
  if (scale <= 0 || name == "indefinite") return;
  Matrix<T> packed(d, d), v(d, d), vectors(d, d), basis(d, d);
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) {
      packed(i, j) = soap_fast::packed_entry(k.data(), d, 1, scale, places.data(), n, i, j);
    }
  }
  std::vector<T> rotations(soap_fast::jacobi_rotations(d)), ascending(d);
  demand(soap_fast::jacobi_eigh(LoneTeam(), d, ld, packed.data(), v.data(), rotations.data()),
         "packed: solved", name, d);
  std::vector<int> order(d);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return packed(a, a) < packed(b, b); });
  for (int c = 0; c < d; ++c) {
    ascending[c] = packed(order[c], order[c]);
    for (int i = 0; i < d; ++i) vectors(i, c) = v(order[c], i);
  }
  Real squares = 0;
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) {
      basis(i, j) = soap_fast::basis_entry(vectors.data(), d, 1, d, places.data(), n, i, j);
    }
  }
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) {
      Real total = k(i, j);
      for (int c = 0; c < d; ++c) {
        const T value = soap_fast::eigenvalue_of(ascending.data(), scale, d, n, c);
        total -= Real(basis(i, c)) * value * basis(j, c);
      }
      squares += total * total;
    }
  }
  check_apart("packed: zero rows apart", name, k, basis);
  expect<T>("packed: QᵀQ - I", 1, not_orthogonal(basis), unit_of<T>(d), 4, name, d);
  expect<T>("packed: |K - Q diag Qᵀ| / |K|", 1, std::sqrt(squares) / norm_of(k), unit_of<T>(d), 3.5,
            name, d);
}

// Sizes known to the compiler take the same steps: same bits.
template <typename T, int d>
void check_fixed(const std::string& name, const Matrix<T>& k) {
  std::vector<T> workspace(soap_fast::eigh_workspace(d)), found(d + d * d), expected(d + d * d);
  soap_fast::eigh_by_jacobi(LoneTeam(), d, k.data(), d, 1, workspace.data(), expected.data(),
                            expected.data() + d);
  soap_fast::eigh_by_jacobi(LoneTeam(), soap_fast::Fixed<d>(), k.data(), d, 1, workspace.data(),
                            found.data(), found.data() + d);
  demand(found == expected, "eigh: a fixed size changes bits", name, d);
}

template <typename T>
void check_unsolvable(int d) {
  std::vector<T> workspace(soap_fast::eigh_workspace(d)), values(d);
  Matrix<T> k(d, d), basis(d, d);
  for (const T bad : {std::numeric_limits<T>::quiet_NaN(), -std::numeric_limits<T>::infinity()}) {
    k(d - 1, 0) = bad;
    for (const T* factor : {static_cast<const T*>(k.data()), static_cast<const T*>(nullptr)}) {
      soap_fast::eigh_by_jacobi(LoneTeam(), d, factor, d, 1, workspace.data(), values.data(),
                                basis.data());
      for (int i = 0; i < d; ++i) {
        demand(std::isnan(values[i]), "eigh: NaN for what is not finite", "", d);
        for (int j = 0; j < d; ++j) demand(basis(i, j) == (i == j), "eigh: identity", "", d);
      }
    }
  }
}

template <typename T>
void check_householder(int size, const std::string& name, const Matrix<T>& a) {
  const int64_t d = a.rows;
  const Real unit = unit_of<T>(d);
  Matrix<T> q = a;
  with_team(size, [&](const auto& team) { soap_fast::householder_q(team, d, d, q.data()); });
  expect<T>("householder: QᵀQ - I", size, not_orthogonal(q), unit, 5, name, d);
  expect<T>("householder: R below its diagonal", size, below_diagonal(q, a), unit, 2, name, d);
}

// Three refreshes in a row from a random basis; a factor without one must leave it as it was.
template <typename T>
void check_refresh(int size, const std::string& name, const Matrix<T>& k) {
  using soap_fast::Outcome;
  const int64_t d = k.rows;
  const Real unit = unit_of<T>(d);
  Matrix<T> basis = random_matrix<T>(d, d, 12);
  soap_fast::householder_q(LoneTeam(), d, d, basis.data());
  for (int round = 0; round < 3; ++round) {
    const Matrix<T> before = basis;
    Matrix<T> carry = basis;
    std::vector<T> workspace(soap_fast::refresh_workspace(d));
    std::vector<int64_t> order(d, -1);
    std::vector<Outcome> outcomes(size);
    T off = -1;
    with_team(size, [&](const auto& team) {
      outcomes[team.rank()] =
          soap_fast::refresh_by_householder(team, d, k.data(), basis.data(), T(0), workspace.data(),
                                            order.data(), carry.data(), false, &off);
    });
    for (const Outcome outcome : outcomes) {
      demand(outcome == outcomes[0], "refresh: all threads get the same", name, d);
    }
    demand(off >= 0 && off <= 1 + T(16 * unit), "refresh: a share off the diagonal", name, d);
    if (outcomes[0] != Outcome::kRefreshed) {
      demand(outcomes[0] == Outcome::kKept && norm_of(k) == 0, "refresh: only zero stays", name, d);
      for (int64_t i = 0; i < d * d; ++i) {
        demand(basis.data()[i] == before.data()[i], "refresh: what stays is untouched", name, d);
      }
      return;
    }
    std::vector<bool> seen(d, false);
    for (const int64_t column : order) {
      demand(column >= 0 && column < d && !seen[column], "refresh: a permutation", name, d);
      if (column >= 0 && column < d) seen[column] = true;
    }
    check_apart("refresh: zero rows apart", name, k, basis);
    expect<T>("refresh: QᵀQ - I", size, not_orthogonal(basis), unit, 5, name, d);
    Real worst_entry = 0;
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t j = 0; j < d; ++j) {
        Real total = 0;
        for (int64_t n = 0; n < d; ++n) total += Real(before(n, i)) * basis(n, j);
        worst_entry = std::max(worst_entry, std::fabs(total - Real(carry(i, j))));
      }
    }
    expect<T>("refresh: carry", size, worst_entry, unit, 2, name, d);
  }
}

// The factor and the inverse of K, and what products with the latter solve.
template <typename T>
void check_tile(int size, const std::string& name, const Matrix<T>& k, bool definite) {
  const int d = int(k.rows), ld = soap_fast::kTileLeading<T>;
  const Real unit = unit_of<T>(d), norm = norm_of(k);
  std::vector<T> tile(soap_fast::kTileElements<T>, std::numeric_limits<T>::quiet_NaN());
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j <= i; ++j) tile[i * ld + j] = k(i, j);
  }
  std::vector<T> scratch(soap_fast::kFactorScratch), by_one = tile;
  std::vector<int> results(size);
  with_team(size, [&](const auto& team) {
    results[team.rank()] = soap_fast::factor_tile(team, d, T(0), tile.data(), scratch.data());
  });
  for (const int result : results) {
    demand(result == results[0], "cholesky: all threads get the same", name, d);
    demand(result >= -1 && result < d, "cholesky: a row or none", name, d);
  }
  if (definite) demand(results[0] == soap_fast::kNoFailedPivot, "cholesky: definite", name, d);
  const int alone = soap_fast::factor_tile(LoneTeam(), d, T(0), by_one.data(), scratch.data());
  demand(results[0] == alone, "cholesky: the same from one thread", name, d);
  if (results[0] != soap_fast::kNoFailedPivot) return;
  for (int i = 0; i < d; ++i) {
    demand(std::equal(&tile[i * ld], &tile[i * ld + d], &by_one[i * ld]),
           "cholesky: the same bits from one thread", name, d);
  }
  Matrix<T> l(d, d);
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j <= i; ++j) l(i, j) = soap_fast::factor_entry(tile.data(), i, j);
  }
  Real squares = 0;
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j <= i; ++j) {
      Real total = k(i, j);
      for (int c = 0; c <= j; ++c) total -= Real(l(i, c)) * l(j, c);
      squares += (i == j ? 1 : 2) * total * total;
    }
  }
  expect<T>("cholesky: |K - L Lᵀ| / |K|", size, std::sqrt(squares) / norm, unit, 2, name, d);

  const int height = std::min(d + 5, soap_fast::kTile<T>);
  const Matrix<T> b = random_matrix<T>(height, d, 8);
  std::vector<T> p(soap_fast::kTileElements<T>);
  for (int i = 0; i < height; ++i) {
    for (int c = 0; c < d; ++c) p[i * ld + c] = b(i, c);
  }
  Matrix<T> x(height, d);
  with_team(size, [&](const auto& team) {
    soap_fast::multiply_by_transposed_lower(team, height, d, p.data(), tile.data(),
                                            [&](int i, int c, T entry) { x(i, c) = entry; });
  });
  // Each entry of X Lᵀ - B is small against |B| |W|ᵀ |L|ᵀ there.
  Real residual = 0;
  for (int i = 0; i < height; ++i) {
    std::vector<Real> sizes_of_x(d);
    for (int c = 0; c < d; ++c) {
      for (int n = 0; n <= c; ++n) {
        sizes_of_x[c] += std::fabs(Real(b(i, n)) * tile[c * ld + n]);
      }
    }
    for (int j = 0; j < d; ++j) {
      Real total = -Real(b(i, j)), sizes = 0;
      for (int c = 0; c <= j; ++c) {
        total += Real(x(i, c)) * l(j, c);
        sizes += sizes_of_x[c] * std::fabs(Real(l(j, c)));
      }
      if (sizes > 0) residual = std::max(residual, std::fabs(total) / sizes);
    }
  }
  expect<T>("triangular: |X Lᵀ - B| / |B| |Wᵀ| |Lᵀ|", size, residual, unit, 2, name, d);
}

// The first pivot that fails is the one reported; one that is lifted fails nobody.
template <typename T>
void check_failed_pivots(int d) {
  const int ld = soap_fast::kTileLeading<T>;
  for (const int row : {0, d / 2, d - 1}) {
    for (const T bad : {T(-1), T(0), std::numeric_limits<T>::quiet_NaN()}) {
      for (const T lift : {T(0), T(0.5), T(1)}) {
        std::vector<T> tile(soap_fast::kTileElements<T>), scratch(soap_fast::kFactorScratch);
        for (int i = 0; i < d; ++i) tile[i * ld + i] = i >= row ? bad : T(2);
        const int found = soap_fast::factor_tile(LoneTeam(), d, lift, tile.data(), scratch.data());
        const bool is_lifted = lift > 0 && bad >= -lift;
        demand(found == (is_lifted ? soap_fast::kNoFailedPivot : row),
               "cholesky: the first failed pivot", "diagonal", d);
        if (!is_lifted) continue;
        const T entry = soap_fast::factor_entry(tile.data(), d - 1, d - 1);
        demand(std::fabs(entry * entry - lift) <= 4 * soap_fast::Float<T>::epsilon,
               "cholesky: a lifted pivot", "diagonal", d);
      }
    }
  }
}

// Sizes up to 32 and, of what is not for small matrices alone, larger ones.
template <typename T>
void check_size(int size, int64_t d) {
  for (const auto& [name, k] : factors<T>(d)) {
    if (d <= soap_fast::kJacobiLargest) check_eigh(size, name, k);
    if (d <= soap_fast::kJacobiLargest) check_refresh(size, name, k);
    if (size == 1) check_packed(name, k);
    check_householder(size, name, k);
    Matrix<T> shifted = k;  // as in the refresh: the shift makes it definite
    const bool shift = name != "indefinite" && name != "zero" && name != "1e-30";
    for (int64_t i = 0; shift && i < d; ++i) {
      shifted(i, i) += T(32 * unit_of<T>(d) * norm_of(k));
    }
    if (d <= soap_fast::kTile<T>) check_tile(size, name, shifted, shift);
  }
  check_householder(size, "any matrix", random_matrix<T>(d, d, 9));
  Matrix<T> graded = random_matrix<T>(d, d, 10), greatest = random_matrix<T>(d, d, 11);
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < d; ++j) {
      graded(i, j) *= T(std::pow(10., -28. * double(j) / double(d)));
      if (j % 4 == 2) graded(i, j) = 0;
      greatest(i, j) = std::copysign(std::numeric_limits<T>::max(), greatest(i, j));
    }
  }
  check_householder(size, "28 decades, zero columns", graded);
  check_householder(size, "greatest numbers", greatest);
}

template <typename T>
void check_all(bool races) {
  for (int64_t d = 1; !races && d <= 64; ++d) check_size<T>(1, d);
  if (!races) check_size<T>(1, 130);
  for (const int64_t d : {1, 2, 3, 4, 7, 32}) check_size<T>(5, d);
  check_size<T>(3, 40);
  for (const int d : {1, 2, 3, 9, 32}) check_unsolvable<T>(d);
  for (const int d : {1, 7, 31, soap_fast::kTile<T>}) check_failed_pivots<T>(d);
  for (const auto& [name, k] : factors<T>(1)) check_fixed<T, 1>(name, k);
  for (const auto& [name, k] : factors<T>(2)) check_fixed<T, 2>(name, k);
  for (const auto& [name, k] : factors<T>(3)) check_fixed<T, 3>(name, k);
}

}  // namespace

int main(int count, char** arguments) {
  const bool races = count > 1 && std::strcmp(arguments[1], "races") == 0;
  check_all<float>(races);
  check_all<double>(races);
  return report("teams");
}
