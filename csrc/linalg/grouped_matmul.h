// grouped_matmul_: batched products of many sizes in one call. soap_fast/step/grouped_matmul.py
// defines the operators.
#pragma once

#include <vector>

#include "common.h"
#include "linalg/product_structure.h"

namespace soap_fast {

// Matrices of a group: where they lie, and elements from one matrix, row and column to the next.
struct Matrices {
  int64_t address, matrix, row, column;
};

// `count` products [m, n] of [m, k] and [k, n]. A row of the table that grouped_matmul_at_ is
// given.
struct Group {
  int64_t count, m, n, k;
  Matrices a, b, product;
};
constexpr int64_t kGroupColumns = sizeof(Group) / sizeof(int64_t);

// products[g] = a[g] b[g], or -= with kSubtract, one batched product of torch's per group.
void grouped_matmul(TensorList a, TensorList b, TensorList products, int64_t structure);

// The same for matrices that a table [groups, kGroupColumns] int64 on the host names by address,
// all of the dtype and on the device of `memory`: by tensors, and grouped_matmul_ with these.
void grouped_matmul_as_tensors(Tensor memory, Tensor groups, int64_t structure);

// grouped_matmul_at_ by the dispatcher, which takes whatever kernel is registered for the device. A
// table, since tensors cost more than a product's launch: docs/decisions.md.
void call_grouped_matmul_at(const Tensor& memory, std::vector<Group>& groups, int64_t structure);

}  // namespace soap_fast
