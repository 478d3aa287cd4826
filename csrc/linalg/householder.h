// Q of the Householder QR of a square matrix, for one team.
#pragma once

#include <cmath>

#include "linalg/scale.h"

namespace soap_fast {

// d · d must fit an int: int64_t costs registers, and a matrix beyond that is no work for one team.
constexpr int kHouseholderLargest = 46340;

namespace householder {

// A power of two that brings `largest` near 1; 1 where there is nothing to bring.
template <typename T>
SOAP_FAST_HOST_DEVICE T safe_scale(T largest) {
  const T scale = scale_for(largest, Float<T>::smallest_normal, Float<T>::greatest);
  return scale > 0 ? scale : T(1);
}

template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void scale_matrix(const Team& team, int d, int ld, T* a) {
  T largest = 0;
  for (int row = 0; row < d; ++row) {
    for (int column = team.rank(); column < d; column += team.size()) {
      const T magnitude = std::fabs(a[row * ld + column]);
      if (magnitude > largest) largest = magnitude;
    }
  }
  const T scale = safe_scale(team.max(largest));
  for (int row = 0; row < d; ++row) {
    for (int column = team.rank(); column < d; column += team.size()) {
      a[row * ld + column] *= scale;
    }
  }
  team.sync();
}

// Turns column j into its reflection I - tau w wᵀ, w[j] = 1: tau on the diagonal, the rest of w
// below. tau is 0, no reflection, where nothing stands below the diagonal.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE T make_reflection(const Team& team, int d, int ld, T* a, int j) {
  T largest = 0;
  for (int i = j + team.rank(); i < d; i += team.size()) {
    const T magnitude = std::fabs(a[i * ld + j]);
    if (magnitude > largest) largest = magnitude;
  }
  // Columns of K Q differ by as many decades as the eigenvalues of K, squares by twice as many.
  const T scale = safe_scale(team.max(largest));
  T squares = 0;
  for (int i = j + 1 + team.rank(); i < d; i += team.size()) {
    const T x = a[i * ld + j] * scale;
    squares += x * x;
  }
  squares = team.sum(squares);
  const T head = a[j * ld + j] * scale;
  team.sync();  // all have read the head
  T tau = 0, inverse = 0;
  if (squares > 0) {
    const T norm = std::sqrt(head * head + squares);
    const T beta = head >= 0 ? -norm : norm;
    tau = (beta - head) / beta;
    inverse = 1 / (head - beta);
  }
  if (team.rank() == 0) a[j * ld + j] = tau;
  for (int i = j + 1 + team.rank(); i < d; i += team.size()) {
    a[i * ld + j] = a[i * ld + j] * scale * inverse;
  }
  team.sync();
  return tau;
}

// Reflects columns j + 1 on, which start at row j with `head` in place of what stands there.
template <bool head_is_zero, typename T, typename Team>
SOAP_FAST_HOST_DEVICE void reflect(const Team& team, int d, int ld, T* a, int j, T tau) {
  for (int column = j + 1 + team.rank(); column < d; column += team.size()) {
    const T head = head_is_zero ? T(0) : a[j * ld + column];
    T along = head;
    for (int i = j + 1; i < d; ++i) along += a[i * ld + j] * a[i * ld + column];
    along *= tau;
    a[j * ld + column] = head - along;
    for (int i = j + 1; i < d; ++i) a[i * ld + column] -= a[i * ld + j] * along;
  }
  team.sync();
}

}  // namespace householder

// In place: a [d, ld], seen by the whole team, becomes the orthogonal Q of a = Q R, of any signs.
// Every finite matrix has one; columns that depend on earlier ones get an orthonormal completion.
template <typename T, typename Team>
SOAP_FAST_HOST_DEVICE void householder_q(const Team& team, int d, int ld, T* a) {
  using namespace householder;
  scale_matrix(team, d, ld, a);
  for (int j = 0; j < d; ++j) {
    const T tau = make_reflection(team, d, ld, a, j);
    reflect<false>(team, d, ld, a, j, tau);
  }
  // The product of all reflections from the last one back: what stands above the diagonal is R and
  // not needed, each row of it is overwritten when its own reflection comes.
  for (int j = d - 1; j >= 0; --j) {
    const T tau = a[j * ld + j];
    reflect<true>(team, d, ld, a, j, tau);
    for (int i = j + 1 + team.rank(); i < d; i += team.size()) a[i * ld + j] *= -tau;
    if (team.rank() == 0) a[j * ld + j] = 1 - tau;
    team.sync();
  }
}

}  // namespace soap_fast
