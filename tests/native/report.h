// What the test programs here share: bounds, the worst of each error, teams of one or more threads.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "linalg/team.h"
#include "matrices.h"
#include "thread_team.h"

inline bool failed = false;

// The worst of each error, and where.
struct Worst {
  double bound = 0, error = -1;
  std::string where;
};
inline std::map<std::string, Worst> worst;

template <typename T>
std::string label(const char* what, int size) {
  return std::string(what) + (sizeof(T) == 8 ? ", float64" : ", float32") +
         (size > 1 ? ", threads" : "");
}

template <typename T>
void expect(const char* what, int size, Real error, Real unit, double bound,
            const std::string& name, int64_t d) {
  Worst& entry = worst[label<T>(what, size)];
  const double found = double(error / unit);
  entry.bound = bound;
  if (found > entry.error) entry = {bound, found, name + ", d=" + std::to_string(d)};
  if (found <= bound) return;  // false for NaN
  std::printf("FAILED: %s of %s, d=%d: %g > %g\n", label<T>(what, size).c_str(), name.c_str(),
              int(d), found, bound);
  failed = true;
}

inline void demand(bool holds, const char* what, const std::string& name, int64_t d) {
  if (holds) return;
  std::printf("FAILED: %s, %s, d=%d\n", what, name.c_str(), int(d));
  failed = true;
}

template <typename Work>
void with_team(int size, const Work& work) {
  size == 1 ? work(soap_fast::LoneTeam()) : ThreadTeam::run(size, work);
}

template <typename T>
Real unit_of(int64_t d) {
  return std::numeric_limits<T>::epsilon() * std::sqrt(Real(d));
}

// Prints the worst of each error beside its bound; what main() returns.
inline int report(const char* program) {
  for (const auto& [what, entry] : worst) {
    std::printf("%-58s %8.3f of %4.1f  %s\n", what.c_str(), entry.error, entry.bound,
                entry.where.c_str());
  }
  std::printf("%s: %s\n", program, failed ? "FAILED" : "good");
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
