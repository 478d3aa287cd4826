// The planning of batches.h.
#include "eigh/batches.h"

#include <algorithm>

namespace soap_fast {
namespace {

// In units of the same unknown constant: an eigensolver is cubic.
double cost_of(const StackSize& stack, const Batch& batch) {
  const double d = static_cast<double>(stack.d);
  return d * d * d * static_cast<double>(batch.count);
}

int64_t divided_up(int64_t number, int64_t parts) { return (number + parts - 1) / parts; }

// The largest batch that fits, by halving; 0 if there is none.
int64_t largest_batch(size_t index, const StackSize& stack, const BytesOf& bytes_of, size_t most) {
  int64_t count = std::min({stack.count, kLargestBatch, kLargestBatchElements / stack.d / stack.d});
  while (count > 0) {
    const std::optional<size_t> bytes = bytes_of(index, count);
    if (bytes && (count == 1 || *bytes <= most)) return count;
    count = count > 1 ? divided_up(count, 2) : 0;
  }
  return 0;
}

// Batches of one size, but for the last.
void cut(size_t index, const StackSize& stack, const BytesOf& bytes_of, size_t most,
         std::vector<Batch>& batches) {
  const int64_t largest = largest_batch(index, stack, bytes_of, most);
  if (largest == 0) return;
  const int64_t even = divided_up(stack.count, divided_up(stack.count, largest));
  std::vector<Batch> parts;
  for (int64_t first = 0; first < stack.count; first += even) {
    const int64_t count = std::min(even, stack.count - first);
    const std::optional<size_t> bytes = bytes_of(index, count);
    if (!bytes) return;
    parts.push_back({index, first, count, *bytes, 0});
  }
  batches.insert(batches.end(), parts.begin(), parts.end());
}

}  // namespace

size_t batch_bytes(const std::vector<StackSize>& stacks) {
  size_t factors = 0;
  for (const StackSize& stack : stacks) {
    factors += sizeof(float) * size_t(stack.d) * size_t(stack.d) * size_t(stack.count);
  }
  return std::clamp(factors, kLeastBatchBytes, kBatchBytes);
}

std::vector<Batch> plan_batches(const std::vector<StackSize>& stacks, const BytesOf& bytes_of,
                                int streams) {
  std::vector<Batch> batches;
  const size_t most = batch_bytes(stacks);
  for (size_t s = 0; s < stacks.size(); ++s) cut(s, stacks[s], bytes_of, most, batches);
  const auto cost = [&](const Batch& batch) { return cost_of(stacks[batch.stack], batch); };
  std::stable_sort(batches.begin(), batches.end(),
                   [&](const Batch& a, const Batch& b) { return cost(a) > cost(b); });
  std::vector<double> load(streams);
  for (Batch& batch : batches) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += cost(batch);
    batch.stream = static_cast<int>(least - load.begin());
  }
  return batches;
}

}  // namespace soap_fast
