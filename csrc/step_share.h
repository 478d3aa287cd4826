// What the operators of the CPU step share: rows of tables, and tensors shared out among threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <vector>

#include "eigh.h"
#include "serial_lapack.h"

namespace soap_fast {

// Rows of a table, whose columns are the members of a struct.
template <typename Row, typename Element>
const Row* rows_of(const Tensor& table, const char* name, torch::headeronly::ScalarType dtype) {
  static_assert(sizeof(Row) % sizeof(Element) == 0, "a struct of nothing else");
  const int64_t columns = sizeof(Row) / sizeof(Element);
  check(table.dim() == 2 && table.size(1) == columns && table.scalar_type() == dtype &&
            table.is_contiguous(),
        name, " is not a contiguous table of ", columns, " columns of its dtype");
  return reinterpret_cast<const Row*>(table.const_data_ptr<Element>());
}

// Runs run(index, thread) for order[first ..], each index whole on one of the threads, which take
// the next as they become free.
template <typename Run>
void share_out(const std::vector<int64_t>& order, size_t first, int64_t threads, const Run& run) {
  std::atomic<size_t> next{first};
  std::atomic<int64_t> workers{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const SerialLapack serial;
    const int64_t thread = workers++;
    if (thread >= threads) return;
    for (size_t i = next++; i < order.size(); i = next++) run(order[i], thread);
  });
}

}  // namespace soap_fast
