#include "refresh/rounds.h"

#include <algorithm>
#include <array>

#include "common.h"
#include "refresh/phases/sequence.h"

namespace soap_fast {

std::vector<std::vector<Part>> rounds_of(std::vector<Part> parts, int64_t element_bytes,
                                         int64_t lent_bytes) {
  std::stable_sort(parts.begin(), parts.end(),
                   [](const Part& a, const Part& b) { return a.size > b.size; });
  const int64_t bytes =
      lent_bytes > 0 ? std::min(lent_bytes, kMostWorkspaceBytes) : kMostWorkspaceBytes;
  const int64_t room = bytes / element_bytes;
  std::vector<std::vector<Part>> rounds;
  int64_t left = 0;
  for (Part part : parts) {
    while (part.count > 0) {
      const int64_t each = workspace({part.stack, part.first, 1, part.size});
      if (rounds.empty() || left < each || rounds.back().size() == kMostStacks) {
        rounds.emplace_back();
        left = std::max(room, each);
      }
      const int64_t count = std::min(part.count, left / each);
      rounds.back().push_back({part.stack, part.first, count, part.size});
      left -= count * each;
      part.first += count;
      part.count -= count;
    }
  }
  return rounds;
}

namespace {

class Plan {
 public:
  template <typename T>
  void add_phase(const std::vector<Part>& parts, Phase phase, RefreshCall call) {
    visit_phase<T>(phase, [&](auto of) {
      using P = decltype(of);
      for (int step = call.step; step < call.step + call.steps; ++step) {
        for (const Part& part : parts) {
          const int units = P::parts(static_cast<int>(part.d()), RefreshCall{call.round, step});
          // Not of a factor that is done earlier than others.
          if (units > 0) add({int64_t(phase), call.round, step}, part, units);
        }
      }
    });
    ++launches_;
  }
  void add_product(const std::vector<Part>& parts, Product product) {
    for (const Part& part : parts) {
      add({kPhases + int64_t(product), 0, 0, operands_of(product).structure}, part, 0);
    }
    ++launches_;
  }
  template <typename T>
  void add_panel(const std::vector<Part>& parts, PanelProduct product, RefreshCall call) {
    const PanelOperands of = operands_of<T>(product, call);
    const int64_t what = kPhases + kProducts + int64_t(product);
    for (const Part& part : parts) {
      if (part.d() <= of.first) continue;
      add({what, call.round, call.step, kSubtract, of.top, of.first, of.width}, part, 0);
    }
    ++launches_;
  }
  std::vector<int64_t> rows;

 private:
  void add(std::array<int64_t, 7> what, const Part& part, int64_t units) {
    rows.push_back(launches_);
    rows.insert(rows.end(), what.begin(), what.end());
    rows.insert(rows.end(), {part.size, part.count, units});
  }
  int64_t launches_ = 0;
};

template <typename T>
std::vector<int64_t> plan_of(const Parts& parts, int64_t lent_bytes) {
  Plan plan;
  for (size_t first = 0; first < parts.small.size(); first += kMostStacks) {
    const size_t end = std::min<size_t>(first + kMostStacks, parts.small.size());
    plan.add_phase<T>({parts.small.begin() + first, parts.small.begin() + end}, Phase::kSmall,
                      RefreshCall{kOfRotated, 0});
  }
  for (const std::vector<Part>& round : rounds_of(parts.large, sizeof(T), lent_bytes)) {
    const int largest = static_cast<int>(round.front().d());  // rounds begin with the largest
    refresh_large<T>(
        largest, [&](Phase phase, RefreshCall call) { plan.add_phase<T>(round, phase, call); },
        [&](Product product) { plan.add_product(round, product); },
        [&](PanelProduct product, RefreshCall call) { plan.add_panel<T>(round, product, call); });
  }
  return plan.rows;
}

}  // namespace

std::vector<int64_t> refresh_plan(std::vector<int64_t> sizes, std::vector<int64_t> counts,
                                  int64_t element_bytes, int64_t lent_bytes) {
  check(sizes.size() == counts.size(), "refresh_plan: ", sizes.size(), " sizes and ", counts.size(),
        " counts; each stack has one of both");
  check(element_bytes == 4 || element_bytes == 8, "refresh_plan: element_bytes=", element_bytes,
        " is neither 4, float32, nor 8, float64");
  Parts parts;
  for (size_t s = 0; s < sizes.size(); ++s) {
    parts.add({s, 0, counts[s], sizes[s]}, kHouseholderUpTo);
  }
  return element_bytes == 4 ? plan_of<float>(parts, lent_bytes)
                            : plan_of<double>(parts, lent_bytes);
}

}  // namespace soap_fast
