// Eigenpairs of a small symmetric matrix by Jacobi's rotations, for one team.
#pragma once

#include <cmath>

#include "linalg/team.h"

namespace soap_fast {

// A sweep rotates every pair once. The hard matrices of tests/native/teams.cpp, d <= 32, took 9 in
// float32 and in float64.
constexpr int kMostSweeps = 30;

// Elements of `rotations` below.
SOAP_FAST_HOST_DEVICE constexpr int jacobi_rotations(int d) { return (d + 1) / 2 * 2; }

namespace jacobi {

// Two rows and columns that are rotated together; q == d: p has no partner in this round.
struct Pair {
  int p, q;
};

// Round-robin: in `players - 1` rounds every two of an even number of players meet once, each
// plays once a round, so that a team's threads rotate disjoint pairs.
SOAP_FAST_HOST_DEVICE inline Pair pair_of(int players, int round, int k) {
  const int circle = players - 1;
  if (k == 0) return {round, circle};
  int p = round + k, q = round - k;
  if (p >= circle) p -= circle;
  if (q < 0) q += circle;
  return {p, q};
}

template <typename T>
SOAP_FAST_HOST_DEVICE T& lower(T* a, int ld, int i, int j) {
  return i > j ? a[i * ld + j] : a[j * ld + i];
}

// The rotation by (cosine c, sine s), as s and h = s / (1 + c): the changes are small where the
// angle is, and so are their rounding errors.
template <typename T>
SOAP_FAST_HOST_DEVICE void rotate(T s, T h, T& x, T& y) {
  const T x_before = x, y_before = y;
  x = x_before - s * (y_before + h * x_before);
  y = y_before + s * (x_before - h * y_before);
}

// Makes a[p, q] zero; leaves s and h for the other rows and columns.
template <typename T>
SOAP_FAST_HOST_DEVICE void annihilate(T* a, int ld, Pair pair, T threshold, T& s, T& h) {
  T& off = lower(a, ld, pair.p, pair.q);
  s = h = 0;
  if (!(std::fabs(off) > threshold)) return;
  T& first = a[pair.p * ld + pair.p];
  T& second = a[pair.q * ld + pair.q];
  const T cotangent = (second - first) / (2 * off);  // of twice the angle
  T t = 1 / (std::fabs(cotangent) + std::sqrt(1 + cotangent * cotangent));
  if (cotangent < 0) t = -t;
  const T c = 1 / std::sqrt(1 + t * t);
  s = t * c;
  h = s / (1 + c);
  first -= t * off;
  second += t * off;
  off = 0;
}

// The entries where the rows and columns of two pairs cross, from both sides at once.
template <typename T>
SOAP_FAST_HOST_DEVICE void rotate_crossing(T* a, int ld, int d, Pair k, Pair l, const T* of_k,
                                           const T* of_l) {
  if (of_k[0] == 0 && of_l[0] == 0) return;
  const bool pair_k = k.q < d, pair_l = l.q < d;
  T pp = lower(a, ld, k.p, l.p);
  T pq = pair_l ? lower(a, ld, k.p, l.q) : T(0);
  T qp = pair_k ? lower(a, ld, k.q, l.p) : T(0);
  T qq = pair_k && pair_l ? lower(a, ld, k.q, l.q) : T(0);
  rotate(of_k[0], of_k[1], pp, qp);
  rotate(of_k[0], of_k[1], pq, qq);
  rotate(of_l[0], of_l[1], pp, pq);
  rotate(of_l[0], of_l[1], qp, qq);
  lower(a, ld, k.p, l.p) = pp;
  if (pair_l) lower(a, ld, k.p, l.q) = pq;
  if (pair_k) lower(a, ld, k.q, l.p) = qp;
  if (pair_k && pair_l) lower(a, ld, k.q, l.q) = qq;
}

// What counts as zero off the diagonal. All of it together is a quarter of eps · sqrt(d) · |A|_F.
template <typename T, typename Team, typename Size>
SOAP_FAST_HOST_DEVICE T threshold_of(const Team& team, Size d, const T* a, int ld) {
  T squares = 0;
  for (int i = team.rank(); i < d; i += team.size()) {
    for (int j = 0; j < i; ++j) squares += 2 * a[i * ld + j] * a[i * ld + j];
    squares += a[i * ld + i] * a[i * ld + i];
  }
  return Float<T>::epsilon / 4 * std::sqrt(team.sum(squares) / d);
}

template <typename T, typename Team, typename Size>
SOAP_FAST_HOST_DEVICE T largest_off_diagonal(const Team& team, Size d, const T* a, int ld) {
  T largest = 0;
  for (int i = team.rank(); i < d; i += team.size()) {
    for (int j = 0; j < i; ++j) {
      const T magnitude = std::fabs(a[i * ld + j]);
      if (magnitude > largest) largest = magnitude;
    }
  }
  return team.max(largest);
}

}  // namespace jacobi

// A = Vᵀ diag(λ) V. Of `a` [d, ld] the lower triangle is read, its largest entry near 1; it ends
// with λ, in no order, on its diagonal. `v` [d, ld] ends with an eigenvector per row. `rotations`
// is memory for jacobi_rotations(d) numbers. All three are seen by the whole team.
// False: not diagonal after kMostSweeps, which no finite matrix has been found to cause.
template <typename T, typename Team, typename Size>
SOAP_FAST_HOST_DEVICE bool jacobi_eigh(const Team& team, Size d, int ld, T* a, T* v, T* rotations) {
  using namespace jacobi;
  for (int i = team.rank(); i < d; i += team.size()) {
    for (int j = 0; j < d; ++j) v[i * ld + j] = T(i == j);
  }
  const T threshold = threshold_of(team, d, a, ld);
  const int pairs = (d + 1) / 2, players = 2 * pairs;
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    if (largest_off_diagonal(team, d, a, ld) <= threshold) return true;
    team.sync();
    for (int round = 0; round < players - 1; ++round) {
      for (int k = team.rank(); k < pairs; k += team.size()) {
        const Pair pair = pair_of(players, round, k);
        T* of_pair = rotations + 2 * k;
        if (pair.q < d) {
          annihilate(a, ld, pair, threshold, of_pair[0], of_pair[1]);
        } else {
          of_pair[0] = of_pair[1] = 0;
        }
      }
      team.sync();
      // Every two pairs once: k with the one m places further round the circle.
      for (int e = team.rank(); e < pairs * (pairs - 1) / 2; e += team.size()) {
        const int k = e % pairs, m = 1 + e / pairs, l = k + m < pairs ? k + m : k + m - pairs;
        rotate_crossing(a, ld, d, pair_of(players, round, k), pair_of(players, round, l),
                        rotations + 2 * k, rotations + 2 * l);
      }
      for (int k = 0; k < pairs; ++k) {
        const T s = rotations[2 * k], h = rotations[2 * k + 1];
        if (s == 0) continue;
        const Pair pair = pair_of(players, round, k);
        for (int j = team.rank(); j < d; j += team.size()) {
          rotate(s, h, v[pair.p * ld + j], v[pair.q * ld + j]);
        }
      }
      team.sync();
    }
  }
  return largest_off_diagonal(team, d, a, ld) <= threshold;
}

}  // namespace soap_fast
