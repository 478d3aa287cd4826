// plan_batches: every factor once, within every bound, the work shared out.
#include "eigh/batches.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

using namespace soap_fast;

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  std::printf("batches: %s\n", what);
}

constexpr int kStreams = 4;

double cost_of(const std::vector<StackSize>& stacks, const Batch& batch) {
  const double d = static_cast<double>(stacks[batch.stack].d);
  return d * d * d * static_cast<double>(batch.count);
}

void check_coverage(const std::vector<StackSize>& stacks, const std::vector<Batch>& batches) {
  for (size_t s = 0; s < stacks.size(); ++s) {
    std::vector<std::pair<int64_t, int64_t>> parts;
    for (const Batch& batch : batches) {
      if (batch.stack == s) parts.emplace_back(batch.first, batch.count);
    }
    std::sort(parts.begin(), parts.end());
    int64_t next = 0;
    for (const auto& [first, count] : parts) {
      expect(first == next && count > 0, "factors are left out or solved twice");
      next = first + count;
    }
    expect(next == stacks[s].count, "not all factors of a stack are solved");
  }
}

void check_plan(const std::vector<StackSize>& stacks, size_t bytes_per_element) {
  const BytesOf bytes_of = [&](size_t s, int64_t count) {
    const size_t d = static_cast<size_t>(stacks[s].d);
    return std::optional<size_t>(bytes_per_element * d * d * static_cast<size_t>(count));
  };
  const std::vector<Batch> batches = plan_batches(stacks, bytes_of, kStreams);
  check_coverage(stacks, batches);
  std::vector<double> load(kStreams);
  double largest = 0, before = 0;
  for (const Batch& batch : batches) {
    const int64_t d = stacks[batch.stack].d;
    const double cost = cost_of(stacks, batch);
    expect(batch.bytes == *bytes_of(batch.stack, batch.count), "bytes are not those of the batch");
    expect(batch.count == 1 || batch.bytes <= batch_bytes(stacks), "a batch takes too much memory");
    expect(batch.count <= kLargestBatch && d * d * batch.count <= kLargestBatchElements,
           "a batch is larger than cuSOLVER takes");
    expect(&batch == &batches[0] || cost <= before, "an expensive batch comes after a cheap one");
    expect(batch.stream >= 0 && batch.stream < kStreams, "there is no such stream");
    load[batch.stream] += cost;
    largest = std::max(largest, cost);
    before = cost;
  }
  const double mean = std::accumulate(load.begin(), load.end(), 0.) / kStreams;
  expect(*std::max_element(load.begin(), load.end()) <= mean + largest, "the load is lopsided");
}

void check_refusals() {
  const std::vector<StackSize> stacks{{40, 100}, {50000, 2}, {64, 9}, {96, 30}};
  const BytesOf bytes_of = [](size_t s, int64_t count) -> std::optional<size_t> {
    if (s == 0 || (s == 3 && count > 7)) return std::nullopt;
    return 1000;
  };
  for (const Batch& batch : plan_batches(stacks, bytes_of, kStreams)) {
    expect(batch.stack == 2 || batch.stack == 3, "a batch that cuSOLVER does not take");
    expect(batch.stack != 3 || batch.count <= 7, "a batch larger than cuSOLVER takes");
  }
}

// As much as the factors are together, within bounds.
void check_bound() {
  expect(batch_bytes({{192, 99}, {320, 31}}) == kLeastBatchBytes,
         "small models have no least bound");
  expect(batch_bytes({{1024, 20}, {512, 30}}) == size_t(110) << 20,
         "the bound is not the factors'");
  expect(batch_bytes({{2560, 16}}) == kBatchBytes, "large models have no largest bound");
}

}  // namespace

int main() {
  check_plan({}, 8);
  check_plan({{33, 1}}, 8);
  check_plan({{64, 3}, {192, 40}, {320, 12}, {33, 700}, {1280, 2}, {2560, 1}}, 16);
  check_plan({{33, 100000}, {34, 16385}, {35, 16384}}, 8);
  check_plan({{10000, 3}, {46340, 1}, {1024, 77}}, 24);  // some alone above the bound
  check_refusals();
  check_bound();
  std::puts(failures ? "batches: FAILED" : "batches: good");
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
