// grouped_matmul_: batched products of many sizes in one call. soap_fast/step/grouped_matmul.py
// defines the operator.
#pragma once

#include "common.h"
#include "linalg/product_structure.h"

namespace soap_fast {

// products[g] = a[g] b[g], or -= with kSubtract, one batched product of torch's per group.
void grouped_matmul(TensorList a, TensorList b, TensorList products, int64_t structure);

// The same by the dispatcher, which takes whatever kernel is registered for the device.
void call_grouped_matmul(const TensorList& a, const TensorList& b, const TensorList& products,
                         int64_t structure);

}  // namespace soap_fast
