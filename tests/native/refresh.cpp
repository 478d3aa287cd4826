// A refresh by Cholesky, all of its phases, on hard factors: by a thread for each team, with the
// teams of a phase in either order and in the order of steps by several threads, and by teams of
// threads. Errors in units of eps · sqrt(d),
// bounds twice what they were. An argument "races" leaves out what one thread does, for
// ThreadSanitizer.
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <thread>

#include "apart.h"
#include "refresh/phases/sequence.h"

namespace {

using namespace soap_fast;

bool is_negative(const std::string& name) { return name.rfind("negative", 0) == 0; }

// One stack of factors with what a refresh needs beside it; the last place is in no selection.
template <typename T>
struct Stack {
  int k, d;
  std::vector<std::string> names;
  std::vector<T> factors, bases, carries, off_diagonals, matrices;
  std::vector<int32_t> selection;
  std::vector<int64_t> orders, outcomes;
  std::vector<double> measures;
  std::unique_ptr<bool[]> allowed;

  // All hard factors, or `few` of them: teams of threads are slow to start.
  Stack(int d, bool few) : k(0), d(d) {
    const std::set<std::string> few_of{"random", "rank 1", "dead rows"};
    for (const auto& [name, factor] : ::factors<T>(d)) {
      if (name == "indefinite" || (few && !few_of.count(name))) continue;
      add(name, factor);
    }
    Matrix<T> broken = gram<T>(d, 1, [](int64_t, int64_t, int64_t) { return 1.0; });
    add("left out", broken);
    broken(d - 1, 0) = broken(0, d - 1) = std::numeric_limits<T>::quiet_NaN();
    add("NaN", broken);
    // The first pivot that fails is in the last step, or in the one before it.
    for (const int last : {1, kTile<T> + 1}) {
      if (last > 1 && (few || d <= 2 * kTile<T>)) break;
      Matrix<T> negative(d, d);
      for (int i = 0; i < d; ++i) negative(i, i) = T(i >= d - last ? -1 : 1);
      add(last > 1 ? "negative, many" : "negative", negative);
    }
    for (int i = 0; i < k; ++i) selection.push_back(k - 1 - i);
    allowed = std::make_unique<bool[]>(size_t(k));
    for (int i = 0; i < k; ++i) allowed[i] = name_of(i) != "left out";
    Matrix<T> spare(d, d);
    add("spare", spare);
    --k;
    carries.resize(k * d * d);
    off_diagonals.resize(k);
    orders.resize(k * d);
    outcomes.resize(k);
    const T garbage = std::numeric_limits<T>::quiet_NaN();  // as what new memory may hold
    const int64_t rows = in_quads(d);
    matrices.assign(slots_in_workspace(d) * k * rows * rows, garbage);
    measures.resize(refresh_measures(k, rows));
    std::memset(measures.data(), 0xff, measures.size() * sizeof(double));  // NaN, counters too
  }

  void add(const std::string& name, const Matrix<T>& factor) {
    names.push_back(name);
    factors.insert(factors.end(), factor.entries.begin(), factor.entries.end());
    const bool negative = is_negative(name);
    Matrix<T> basis = negative ? Matrix<T>(d, d) : random_matrix<T>(d, d, 20 + k);
    for (int i = 0; negative && i < d; ++i) basis(i, i) = 1;
    if (!negative) householder_q(LoneTeam(), d, d, basis.data());
    bases.insert(bases.end(), basis.entries.begin(), basis.entries.end());
    ++k;
  }
  const std::string& name_of(int i) const { return names[selection[i]]; }
  Matrix<T> taken(const std::vector<T>& stack, int64_t i) const {
    Matrix<T> result(d, d);
    std::copy_n(stack.begin() + i * d * d, int64_t(d) * d, result.entries.begin());
    return result;
  }
  RefreshStack<T> entry() {
    return {factors.data(),
            bases.data(),
            selection.data(),
            allowed.get(),
            orders.data(),
            carries.data(),
            outcomes.data(),
            off_diagonals.data(),
            matrices.data(),
            measures.data(),
            int(names.size()),
            k,
            d,
            int(in_quads(d)),
            turned()};
  }
  // Carrying matrices by columns, of some sizes.
  bool turned() const { return d % 2 == 0; }
};

// That the operands of a product are what its kernel may rely on.
template <typename T>
void check_structure(const Operands& of, int d, const T* left, const T* right) {
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < i; ++j) {
      demand(!(of.structure & kLeftUpper) || left[i * d + j] == 0, "refresh: a is upper triangular",
             "", d);
      demand(!(of.structure & kRightLower) || right[i * d + j] == 0,
             "refresh: b is lower triangular", "", d);
    }
  }
}

template <typename T>
void multiply(const RefreshStack<T>& stack, Product product_of) {
  const auto [a, b, out, structure] = operands_of(product_of, stack.turned);
  const int d = stack.d;
  for (int i = 0; i < stack.k; ++i) {
    const T *left = stack.matrix(a, i), *right = stack.matrix(b, i);
    if (stack.alive(i)) check_structure(operands_of(product_of, stack.turned), d, left, right);
    T* product = stack.matrix(out, i);
    for (int row = 0; row < d; ++row) {
      for (int column = 0; column < d; ++column) {
        T total = 0;
        for (int k = 0; k < d; ++k) total += left[row * d + k] * right[column * d + k];
        T& entry = product[row * d + column];
        entry = structure & kSubtract ? entry - total : total;
      }
    }
  }
}

// Of a panel, where `stack` has it. What the source has above the diagonal may be anything.
template <typename T>
void multiply(const RefreshStack<T>& stack, PanelProduct product, RefreshCall call) {
  const auto [a, b, out, top, first, width] = operands_of<T>(product, call);
  const int d = stack.d, end = std::min(d, first + width);
  for (int i = 0; i < stack.k; ++i) {
    const T *left = stack.matrix(a, i), *right = stack.matrix(b, i);
    T* taken_from = stack.matrix(out, i);
    for (int row = top; row < d; ++row) {
      for (int column = first; column < end; ++column) {
        T total = 0;
        for (int k = 0; k < first; ++k) total += left[row * d + k] * right[column * d + k];
        taken_from[row * d + column] -= total;
      }
    }
  }
}

// A launch of several steps as on a GPU: threads begin as teams do there.
template <typename P, typename T>
void run_in_steps(const RefreshTable<T>& table, RefreshCall call, int team_size) {
  const Steps steps = steps_of<P>(table, call);
  std::atomic<int> left(steps.teams());
  std::vector<std::thread> threads;
  for (int n = 0; n < 3; ++n) {
    threads.emplace_back([&] {
      std::vector<T> scratch(kBlockScratch<T>);
      // Relaxed: it must not be this that orders what teams write and read.
      while (left.fetch_sub(1, std::memory_order_relaxed) > 0) {
        with_team(team_size,
                  [&](const auto& team) { run_next<P>(team, table, steps, scratch.data()); });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int s = 0; s < table.count; ++s) {
    for (int i = 0; i < table.stacks[s].k; ++i) {
      for (const OfFactor counter : {OfFactor::kDone, OfFactor::kBegun}) {
        demand(*table.stacks[s].counter(counter, i) == 0, "refresh: counters", "",
               table.stacks[s].d);
      }
    }
  }
}

// Of the teams of a launch: as they are numbered, the last first, or as they are on a GPU.
enum class Order { kForwards, kBackwards, kAsTheyBegin };

template <typename P, typename T>
void run_step(const RefreshTable<T>& table, RefreshCall call, int team_size, Order order) {
  const auto parts = [&](int d) { return P::parts(d, call); };
  const int64_t units = units_in(table, parts);
  std::vector<T> scratch(std::max(kBlockScratch<T>, refresh_workspace(kHouseholderUpTo)));
  for (int64_t n = 0; n < units; ++n) {
    const auto unit = unit_of(table, order == Order::kBackwards ? units - 1 - n : n, parts);
    with_team(team_size, [&](const auto& team) {
      P::run(team, *unit.stack, unit.factor, unit.part, call, table.tolerance, scratch.data());
    });
  }
  demand(unit_of(table, units, parts).stack == nullptr, "refresh: units end", "", int(units));
}

template <typename T>
void refresh(std::vector<Stack<T>>& stacks, int team_size, Order order) {
  RefreshTable<T> table{};
  int largest = 0;
  for (Stack<T>& stack : stacks) {
    table.stacks[table.count++] = stack.entry();
    largest = std::max(largest, table.stacks[table.count - 1].size);
  }
  const auto launch = [&](Phase phase, RefreshCall call) {
    visit_phase<T>(phase, [&](auto of) {
      using P = decltype(of);
      if constexpr (kGoesBySteps<P>) {
        if (order == Order::kAsTheyBegin) return run_in_steps<P>(table, call, team_size);
      }
      for (int step = call.step; step < call.step + call.steps; ++step) {
        run_step<P>(table, RefreshCall{call.round, step}, team_size, order);
      }
    });
  };
  if (largest <= kHouseholderUpTo) return launch(Phase::kSmall, RefreshCall{kOfRotated, 0});
  refresh_large<T>(
      int(in_quads(largest)), launch,
      [&](Product product) {
        for (int s = 0; s < table.count; ++s) multiply(table.stacks[s], product);
      },
      [&](PanelProduct product, RefreshCall call) {
        for (int s = 0; s < table.count; ++s) multiply(table.stacks[s], product, call);
      });
}

// What must have become of factor i, whose basis was `before`.
template <typename T>
void check_factor(const Stack<T>& stack, int i, const Matrix<T>& before, bool by_cholesky,
                  int team_size) {
  const std::string& name = stack.name_of(i);
  const int d = stack.d;
  const Matrix<T> basis = stack.taken(stack.bases, stack.selection[i]);
  const Matrix<T> carry = stack.taken(stack.carries, i);
  static const std::map<std::string, Outcome> special{
      {"left out", Outcome::kLeftOut}, {"NaN", Outcome::kFailed}, {"zero", Outcome::kKept}};
  // Householder's QR takes what has no Cholesky factor too.
  const bool no_pivot = is_negative(name) && by_cholesky && d > 1;
  const auto found = special.find(name);
  const Outcome expected = found != special.end() ? found->second
                           : no_pivot             ? Outcome::kFailed
                                                  : Outcome::kRefreshed;
  demand(stack.outcomes[i] == int64_t(expected), "refresh: outcome", name, d);
  if (expected != Outcome::kRefreshed) {
    demand(basis.entries == before.entries, "refresh: what stays is untouched", name, d);
    for (int row = 0; row < d; ++row) {
      demand(stack.orders[i * d + row] == row, "refresh: order of what stays", name, d);
      for (int column = 0; column < d; ++column) {
        demand(carry(row, column) == T(row == column), "refresh: carry of what stays", name, d);
      }
    }
    return;
  }
  std::vector<bool> seen(d, false);
  for (int j = 0; j < d; ++j) {
    const int64_t column = stack.orders[i * d + j];
    demand(column >= 0 && column < d && !seen[column], "refresh: a permutation", name, d);
    if (column >= 0 && column < d) seen[column] = true;
  }
  const T share = stack.off_diagonals[i];
  demand(share >= 0 && share <= 1 + T(16 * unit_of<T>(d)), "refresh: off-diagonal share", name, d);
  check_apart("refresh: zero rows apart", name, stack.taken(stack.factors, stack.selection[i]),
              basis);
  expect<T>("refresh: QᵀQ - I", team_size, not_orthogonal(basis), unit_of<T>(d), 4, name, d);
  Real worst_entry = 0;
  for (int row = 0; row < d; ++row) {
    for (int column = 0; column < d; ++column) {
      Real total = 0;
      for (int n = 0; n < d; ++n) total += Real(before(n, row)) * basis(n, column);
      const T found = stack.turned() ? carry(column, row) : carry(row, column);
      worst_entry = std::max(worst_entry, std::fabs(total - Real(found)));
    }
  }
  expect<T>("refresh: carry", team_size, worst_entry, unit_of<T>(d), 2.5, name, d);
}

template <typename T>
void check_refreshes(const std::vector<int>& sizes, int team_size, int rounds) {
  std::vector<Stack<T>> stacks;
  std::map<Order, std::vector<Stack<T>>> others;
  const bool by_cholesky = *std::max_element(sizes.begin(), sizes.end()) > kHouseholderUpTo;
  for (const int d : sizes) stacks.emplace_back(d, rounds == 1);
  for (const Order order : {Order::kBackwards, Order::kAsTheyBegin}) {
    for (const int d : sizes) others[order].emplace_back(d, rounds == 1);
  }
  for (int round = 0; round < rounds; ++round) {
    std::vector<std::vector<T>> before;
    for (const Stack<T>& stack : stacks) before.push_back(stack.bases);
    refresh(stacks, team_size, Order::kForwards);
    for (size_t s = 0; s < stacks.size(); ++s) {
      const Stack<T>& stack = stacks[s];
      for (int i = 0; i < stack.k; ++i) {
        check_factor(stack, i, stack.taken(before[s], stack.selection[i]), by_cholesky, team_size);
      }
      const auto spare = int64_t(stack.k) * stack.d * stack.d;
      demand(std::equal(before[s].begin() + spare, before[s].end(), stack.bases.begin() + spare),
             "refresh: what is not selected stays", "", stack.d);
    }
    for (auto& [order, same] : others) {
      if (team_size > 1 && order == Order::kBackwards) continue;
      refresh(same, team_size, order);
      for (size_t s = 0; s < stacks.size(); ++s) {
        demand(stacks[s].bases == same[s].bases && stacks[s].orders == same[s].orders,
               "refresh: the order of teams changes bits", "", stacks[s].d);
      }
    }
  }
}

template <typename T>
void check_all(bool races) {
  // Sizes around one and two blocks of columns (64 in float32, 32 in float64), several in a table;
  // two panels.
  if (!races) check_refreshes<T>({1, 2, 3, 7, 32}, 1, 3);
  if (!races) check_refreshes<T>({2, 33, 64, 65, 100, 130}, 1, 3);
  if (!races) check_refreshes<T>({33, kPanel + 1}, 1, 1);
  check_refreshes<T>({3, 9}, 3, 1);
  check_refreshes<T>({40, sizeof(T) == 4 ? 70 : 35}, 3, 1);
  if (races) check_refreshes<T>({40, 2 * kTile<T> + 1, 3 * kTile<T>}, 1, 1);
  if (races) check_refreshes<T>({2 * kTile<T> + 1}, 3, 1);
}

}  // namespace

int main(int count, char** arguments) {
  const bool races = count > 1 && std::strcmp(arguments[1], "races") == 0;
  check_all<float>(races);
  check_all<double>(races);
  return report("refresh");
}
