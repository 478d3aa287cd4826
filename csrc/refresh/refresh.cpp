// What refresh_ does alike on every device: the checks.
#include "refresh/refresh.h"

#include <torch/csrc/stable/ops.h>

namespace soap_fast {
namespace {

using torch::headeronly::ScalarType;

void check_stack(size_t s, const TensorList& factors, const TensorList& bases,
                 const TensorList& selections, const TensorList& allowed) {
  const Tensor &stack = factors[s], &basis = bases[s], &selection = selections[s];
  check(stack.dim() == 3 && stack.size(1) == stack.size(2) && basis.dim() == 3 &&
            basis.size(0) == stack.size(0) && basis.size(1) == stack.size(1) &&
            basis.size(2) == stack.size(1),
        "refresh_: factors[", s, "] and bases[", s, "] must both be of one shape [n, d, d]");
  check((stack.scalar_type() == ScalarType::Float || stack.scalar_type() == ScalarType::Double) &&
            basis.scalar_type() == stack.scalar_type(),
        "refresh_: factors[", s, "] and bases[", s, "] must both be float32 or both float64");
  check(basis.is_contiguous(), "refresh_: bases[", s, "] is changed in place: make it contiguous");
  check(selection.dim() == 1 && selection.scalar_type() == ScalarType::Int, "refresh_: selections[",
        s, "] must be 1-D and int32 (torch.arange(n, dtype=torch.int32) selects all)");
  for (const Tensor* tensor : {&stack, &basis, &selection, &allowed[s]}) {
    check(tensor->device() == factors[0].device(), "refresh_: all of stack ", s,
          " must lie on the device of factors[0]; call refresh_ once per device");
  }
  check(allowed[s].dim() == 1 && allowed[s].scalar_type() == ScalarType::Bool &&
            allowed[s].size(0) == selection.size(0),
        "refresh_: allowed[", s, "] must be bool with one entry for each of selections[", s, "]");
}

void check_results(size_t s, const Tensor& stack, const Tensor& selection, const TensorList& orders,
                   const TensorList& carries, const TensorList& outcomes,
                   const TensorList& off_diagonals) {
  const int64_t k = selection.size(0), d = stack.size(1);
  const auto fits = [&](const Tensor& result, ScalarType type, int64_t numel) {
    return result.scalar_type() == type && result.numel() == numel && result.is_contiguous() &&
           result.device() == stack.device();
  };
  const bool turned = carries[s].dim() == 3 && !carries[s].is_contiguous();
  const Tensor by_rows = turned ? torch::stable::transpose(carries[s], 1, 2) : carries[s];
  check(
      fits(orders[s], ScalarType::Long, k * d) && fits(outcomes[s], ScalarType::Long, k) &&
          fits(by_rows, stack.scalar_type(), k * d * d) &&
          fits(off_diagonals[s], stack.scalar_type(), k),
      "refresh_: the results for factors[", s, "] must be contiguous, orders [k, d] and outcomes",
      " [k] int64, carries [k, d, d] and off_diagonals [k] of the factors' dtype, on their device;",
      " carries may be transposed");
}

}  // namespace

void check_refresh(const TensorList& factors, const TensorList& bases, const TensorList& selections,
                   const TensorList& allowed, const TensorList& orders, const TensorList& carries,
                   const TensorList& outcomes, const TensorList& off_diagonals) {
  for (const TensorList* list :
       {&bases, &selections, &allowed, &orders, &carries, &outcomes, &off_diagonals}) {
    check(list->size() == factors.size(), "refresh_: every list must have one entry per stack");
  }
  for (size_t s = 0; s < factors.size(); ++s) {
    check_stack(s, factors, bases, selections, allowed);
    check_results(s, factors[s], selections[s], orders, carries, outcomes, off_diagonals);
  }
}

void refresh_elsewhere(TensorList factors, TensorList, TensorList, TensorList, double, TensorList,
                       TensorList, TensorList, TensorList) {
  check(factors.empty(), "refresh_: this build of soap_fast has no kernel for the device of the",
        " factors; `soap_fast.extension.build_info()` says what was compiled and why");
}

}  // namespace soap_fast
