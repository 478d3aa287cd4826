#include "linalg/grouped_matmul.h"

#include <torch/csrc/stable/ops.h>

#include <array>

namespace soap_fast {

void grouped_matmul(TensorList a, TensorList b, TensorList products, int64_t) {
  check(a.size() == b.size() && a.size() == products.size(), "grouped_matmul_: ", a.size(),
        " left factors, ", b.size(), " right ones and ", products.size(),
        " products; each group needs one of each");
  for (size_t g = 0; g < a.size(); ++g) {
    std::array<StableIValue, 3> stack{torch::stable::detail::from(a[g]),
                                      torch::stable::detail::from(b[g]),
                                      torch::stable::detail::from(products[g])};
    call_operator("aten::bmm", "out", stack);
    torch::stable::detail::to<Tensor>(stack[0]);  // takes over the reference that was returned
  }
}

void call_grouped_matmul(const TensorList& a, const TensorList& b, const TensorList& products,
                         int64_t structure) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(products),
                                    torch::stable::detail::from(structure)};
  call_operator("soap_fast::grouped_matmul_", "", stack);
}

}  // namespace soap_fast
