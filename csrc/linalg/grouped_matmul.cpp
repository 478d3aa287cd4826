#include "linalg/grouped_matmul.h"

#include <torch/csrc/stable/ops.h>

#include <array>

namespace soap_fast {
namespace {

void multiply(const Tensor& a, const Tensor& b, const Tensor& product) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(product)};
  call_operator("aten::bmm", "out", stack);
  torch::stable::detail::to<Tensor>(stack[0]);  // takes over the reference that was returned
}

// In two operators: baddbmm_ takes Scalars, which torch's stable calls cannot hand over.
void subtract(const Tensor& a, const Tensor& b, Tensor& product) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(a), torch::stable::detail::from(b)};
  call_operator("aten::bmm", "", stack);
  const Tensor taken = torch::stable::detail::to<Tensor>(stack[0]);
  torch::stable::copy_(product, torch::stable::subtract(product, taken));
}

}  // namespace

void grouped_matmul(TensorList a, TensorList b, TensorList products, int64_t structure) {
  check(a.size() == b.size() && a.size() == products.size(), "grouped_matmul_: ", a.size(),
        " left factors, ", b.size(), " right ones and ", products.size(),
        " products; each group needs one of each");
  for (size_t g = 0; g < a.size(); ++g) {
    if (structure & kSubtract) {
      subtract(a[g], b[g], products[g]);
    } else {
      multiply(a[g], b[g], products[g]);
    }
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
