// Whether zero rows of a factor are apart in its basis.
#pragma once

#include "linalg/zero_rows.h"
#include "report.h"

// Zero rows come out as unit vectors behind the others, which are exactly 0 there.
template <typename T>
void check_apart(const char* what, const std::string& name, const Matrix<T>& k,
                 const Matrix<T>& basis) {
  const int64_t d = k.rows;
  std::vector<int64_t> places(d);
  const int64_t n =
      soap_fast::place_rows(soap_fast::LoneTeam(), d, k.data(), d, int64_t(1), places.data());
  for (int64_t i = 0; i < d && n > 0; ++i) {
    for (int64_t j = 0; j < d; ++j) {
      const bool settled = places[i] >= n || j >= n;
      demand(!settled || basis(i, j) == T(places[i] == j), what, name, d);
    }
  }
}
