#include "linalg/grouped_matmul.h"

#include <torch/csrc/stable/ops.h>

#include <array>

namespace soap_fast {
namespace {

using torch::headeronly::ScalarType;

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

// [count, rows, columns], of the dtype and on the device of `memory`.
Tensor tensor_of(const Tensor& memory, const Matrices& at, int64_t count, int64_t rows,
                 int64_t columns) {
  return torch::stable::from_blob(reinterpret_cast<void*>(at.address), {count, rows, columns},
                                  {at.matrix, at.row, at.column}, memory.device(),
                                  memory.scalar_type());
}

void call_grouped_matmul(const TensorList& a, const TensorList& b, const TensorList& products,
                         int64_t structure) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(products),
                                    torch::stable::detail::from(structure)};
  call_operator("soap_fast::grouped_matmul_", "", stack);
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

void grouped_matmul_as_tensors(Tensor memory, Tensor groups, int64_t structure) {
  check(groups.dim() == 2 && groups.size(1) == kGroupColumns && groups.is_contiguous() &&
            groups.scalar_type() == ScalarType::Long &&
            groups.device().type() == torch::headeronly::DeviceType::CPU,
        "grouped_matmul_at_: groups must be [groups, ", kGroupColumns,
        "] int64, contiguous and on the CPU");
  const Group* rows = reinterpret_cast<const Group*>(groups.const_data_ptr<int64_t>());
  TensorList a, b, products;
  for (const Group* g = rows; g < rows + groups.size(0); ++g) {
    a.push_back(tensor_of(memory, g->a, g->count, g->m, g->k));
    b.push_back(tensor_of(memory, g->b, g->count, g->k, g->n));
    products.push_back(tensor_of(memory, g->product, g->count, g->m, g->n));
  }
  call_grouped_matmul(a, b, products, structure);
}

void call_grouped_matmul_at(const Tensor& memory, std::vector<Group>& groups, int64_t structure) {
  const Tensor table = torch::stable::from_blob(
      groups.data(), {static_cast<int64_t>(groups.size()), kGroupColumns}, {kGroupColumns, 1},
      torch::headeronly::DeviceType::CPU, ScalarType::Long);
  std::array<StableIValue, 3> stack{torch::stable::detail::from(memory),
                                    torch::stable::detail::from(table),
                                    torch::stable::detail::from(structure)};
  call_operator("soap_fast::grouped_matmul_at_", "", stack);
}

}  // namespace soap_fast
