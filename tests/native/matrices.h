// Hard matrices of any size and the errors of what is computed from them, in long double.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

using Real = long double;

template <typename T>
struct Matrix {
  int64_t rows, columns;
  std::vector<T> entries;

  Matrix(int64_t rows, int64_t columns) : rows(rows), columns(columns), entries(rows * columns) {}
  T& operator()(int64_t i, int64_t j) { return entries[i * columns + j]; }
  const T& operator()(int64_t i, int64_t j) const { return entries[i * columns + j]; }
  T* data() { return entries.data(); }
  const T* data() const { return entries.data(); }
};

template <typename T>
Matrix<T> random_matrix(int64_t rows, int64_t columns, unsigned seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  Matrix<T> result(rows, columns);
  for (T& entry : result.entries) entry = T(normal(generator));
  return result;
}

// G diag(weights) Gᵀ / d: symmetric to the last bit.
template <typename T, typename Weight>
Matrix<T> gram(int64_t d, unsigned seed, const Weight& weight) {
  const Matrix<double> g = random_matrix<double>(d, d + 3, seed);
  Matrix<T> result(d, d);
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double total = 0;
      for (int64_t k = 0; k < d + 3; ++k) total += g(i, k) * g(j, k) * weight(i, j, k);
      result(i, j) = result(j, i) = T(total / d);
    }
  }
  return result;
}

// What factors of real models look like and what solvers have failed on.
template <typename T>
std::map<std::string, Matrix<T>> factors(int64_t d) {
  std::map<std::string, Matrix<T>> all;
  const auto plain = [](int64_t, int64_t, int64_t) { return 1.0; };
  const auto graded = [d](int64_t i, int64_t j, int64_t) {
    return std::pow(10, -6. * (i + j) / d);
  };
  all.emplace("random", gram<T>(d, 1, plain));
  all.emplace("12 decades", gram<T>(d, 2, graded));
  all.emplace("rank 1", gram<T>(d, 3, [](int64_t, int64_t, int64_t k) { return k == 0; }));
  all.emplace("clustered",
              gram<T>(d, 4, [](int64_t, int64_t, int64_t k) { return k % 3 ? 0 : 1; }));
  all.emplace("dead rows", gram<T>(d, 5, [](int64_t i, int64_t j, int64_t) {
                return i % 3 == 1 || j % 3 == 1 ? 0 : 1;
              }));
  Matrix<T> two_values(d, d), identity(d, d), zero(d, d), ones(d, d), indefinite(d, d);
  const Matrix<T> g = random_matrix<T>(d, d, 6);
  double norm = 0;
  for (int64_t i = 0; i < d; ++i) norm += double(g(i, 0)) * g(i, 0);
  for (int64_t i = 0; i < d; ++i) {
    identity(i, i) = T(0.7);
    for (int64_t j = 0; j < d; ++j) {
      two_values(i, j) = T((i == j) + 1e-4 * g(i, 0) * g(j, 0) / norm);  // all but one are 1
      ones(i, j) = 1;
      indefinite(i, j) = g(std::max(i, j), std::min(i, j));
    }
  }
  all.emplace("nearly the identity", two_values);
  all.emplace("multiple of the identity", identity);
  all.emplace("zero", zero);
  all.emplace("ones", ones);
  all.emplace("indefinite", indefinite);
  for (const double scale : {1e-30, 1e12}) {
    Matrix<T> scaled = gram<T>(d, 7, graded);
    for (T& entry : scaled.entries) entry = T(entry * scale);
    all.emplace(scale < 1 ? "1e-30" : "1e12", scaled);
  }
  return all;
}

template <typename T>
Real norm_of(const Matrix<T>& a) {
  Real squares = 0;
  for (const T entry : a.entries) squares += Real(entry) * entry;
  return std::sqrt(squares);
}

// Worst entry of QᵀQ - I.
template <typename T>
Real not_orthogonal(const Matrix<T>& q) {
  Real worst = 0;
  for (int64_t i = 0; i < q.columns; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      Real total = i == j ? -1 : 0;
      for (int64_t k = 0; k < q.rows; ++k) total += Real(q(k, i)) * q(k, j);
      if (!(std::fabs(total) <= worst)) worst = std::fabs(total);
    }
  }
  return worst;
}

// What of R = Qᵀ A lies below its diagonal, each column as a share of its norm; the worst.
template <typename T>
Real below_diagonal(const Matrix<T>& q, const Matrix<T>& a) {
  Real worst = 0;
  for (int64_t column = 0; column < a.columns; ++column) {
    Real squares = 0, norm = 0;
    for (int64_t k = 0; k < a.rows; ++k) norm += Real(a(k, column)) * a(k, column);
    for (int64_t row = column + 1; row < a.rows; ++row) {
      Real total = 0;
      for (int64_t k = 0; k < a.rows; ++k) total += Real(q(k, row)) * a(k, column);
      squares += total * total;
    }
    if (norm > 0) worst = std::max(worst, std::sqrt(squares / norm));
  }
  return worst;
}
