// How stacks of factors become cuSOLVER's batches: bounded in memory, shared out over streams. No
// torch and no CUDA, so that tests/native runs it on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace soap_fast {

// Device memory of one batch, of which each stream has one at a time. cuSOLVER is reported to ask
// for 300 kB for each 16 x 16 matrix (2.4 GiB for 8192): 850 of those, several for every
// multiprocessor, and 1 GiB for four streams. Where all factors together are smaller, so are the
// batches, but for the least: a small model must not need more for its first bases than it ever
// does.
constexpr size_t kBatchBytes = size_t(256) << 20;
constexpr size_t kLeastBatchBytes = size_t(64) << 20;

// cuSOLVER of CUDA 13.0 is reported to refuse batches of 32768 and more, at the question for their
// workspace; its documentation knows n * n * count <= INT32_MAX alone.
constexpr int64_t kLargestBatch = 16384;
constexpr int64_t kLargestBatchElements = INT32_MAX;

struct StackSize {
  int64_t d, count;
};

// Factors [first, first + count) of a stack's selection, on one stream.
struct Batch {
  size_t stack;
  int64_t first, count;
  size_t bytes;
  int stream;
};

// The bound of a batch among these stacks, in bytes; one factor alone goes through whatever it
// takes.
size_t batch_bytes(const std::vector<StackSize>& stacks);

// Device memory for a batch of `count` from a stack, or nothing if cuSOLVER does not take it.
using BytesOf = std::function<std::optional<size_t>(size_t stack, int64_t count)>;

// In the order of launching: the most expensive first, each to the stream with the least to do. A
// stack that cuSOLVER does not take, one factor at a time either, has no batch.
std::vector<Batch> plan_batches(const std::vector<StackSize>& stacks, const BytesOf& bytes_of,
                                int streams);

}  // namespace soap_fast
