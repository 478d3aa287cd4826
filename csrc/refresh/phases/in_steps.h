// Steps of a phase that follow each other within one launch, for each factor on its own: before a
// team begins, all teams of its factor's step before are done.
//
// Teams number themselves as they begin, and work is numbered step by step. So whoever a team waits
// for has begun, and itself waits for none that has not: a launch ends however few teams run at
// once.
#pragma once

#ifndef __CUDA_ARCH__
#include <thread>
#endif

#include "refresh/phases/table.h"

namespace soap_fast {

// Whether the launches of a phase may have several steps.
template <typename P>
constexpr bool kGoesBySteps = false;

constexpr int kMostSteps = 12;

struct Steps {
  RefreshCall call;
  int ends[kMostSteps];  // how many teams the steps up to each have

  SOAP_FAST_HOST_DEVICE int teams() const { return ends[call.steps - 1]; }
  SOAP_FAST_HOST_DEVICE RefreshCall at(int step) const { return {call.round, call.step + step}; }
};

template <typename P, typename T>
Steps steps_of(const RefreshTable<T>& table, RefreshCall call) {
  Steps steps{call, {}};
  int64_t teams = 0;
  for (int s = 0; s < call.steps; ++s) {
    teams += units_in(table, [&](int d) { return P::parts(d, steps.at(s)); });
    steps.ends[s] = int(teams);
  }
  return steps;
}

namespace in_steps {

// What the counter was; it goes from 0 to `last` and round again. What the team has written before
// is seen by whoever waits for the count.
SOAP_FAST_HOST_DEVICE inline unsigned count(unsigned* counter, unsigned last) {
#ifdef __CUDA_ARCH__
  __threadfence();
  return atomicInc(counter, last);
#else
  unsigned was = __atomic_load_n(counter, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(counter, &was, was < last ? was + 1 : 0, false,
                                      __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
  }
  return was;
#endif
}

SOAP_FAST_HOST_DEVICE inline void wait_for(const unsigned* counter, unsigned least) {
#ifdef __CUDA_ARCH__
  while (*static_cast<const volatile unsigned*>(counter) < least) __nanosleep(50);
  __threadfence();
#else
  while (__atomic_load_n(counter, __ATOMIC_ACQUIRE) < least) std::this_thread::yield();
#endif
}

// Teams of a factor in the first steps.
template <typename P>
SOAP_FAST_HOST_DEVICE unsigned teams_of(int d, const Steps& steps, int first) {
  unsigned teams = 0;
  for (int s = 0; s < first; ++s) teams += unsigned(P::parts(d, steps.at(s)));
  return teams;
}

}  // namespace in_steps

// A team's share of a launch; steps.teams() of them make all of it.
template <typename P, typename T, typename Team>
SOAP_FAST_HOST_DEVICE void run_next(const Team& team, const RefreshTable<T>& table,
                                    const Steps& steps, T* scratch) {
  double mine = 0;
  if (team.rank() == 0) {
    unsigned* begun = table.stacks[0].counter(OfFactor::kBegun, 0);
    mine = in_steps::count(begun, unsigned(steps.teams()) - 1);
  }
  const int number = int(team.max(mine));
  int step = 0;
  while (number >= steps.ends[step]) ++step;
  const RefreshCall call = steps.at(step);
  const auto unit = unit_of(table, step == 0 ? number : number - steps.ends[step - 1],
                            [&](int d) { return P::parts(d, call); });
  unsigned* done = unit.stack->counter(OfFactor::kDone, unit.factor);
  const int d = unit.stack->d;
  if (step > 0) {
    if (team.rank() == 0) in_steps::wait_for(done, in_steps::teams_of<P>(d, steps, step));
    team.sync();
  }
  P::run(team, *unit.stack, unit.factor, unit.part, call, table.tolerance, scratch);
  team.sync();
  if (team.rank() == 0) {
    in_steps::count(done, in_steps::teams_of<P>(d, steps, steps.call.steps) - 1);
  }
}

}  // namespace soap_fast
