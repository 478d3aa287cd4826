// What refresh_ does alike on every device: the checks.
#include "refresh/refresh.h"

namespace soap_fast {
namespace {

using torch::headeronly::ScalarType;

void check_stack(size_t s, const RefreshArguments& all) {
  const Tensor &stack = all.factors[s], &basis = all.bases[s], &selection = all.selections[s];
  check(stack.dim() == 3 && stack.size(1) == stack.size(2) && basis.dim() == 3 &&
            basis.size(1) == stack.size(1) && basis.size(2) == stack.size(1),
        "refresh_: factors[", s, "] and bases[", s, "] must both be stacks of [d, d]");
  check((stack.scalar_type() == ScalarType::Float || stack.scalar_type() == ScalarType::Double) &&
            basis.scalar_type() == stack.scalar_type(),
        "refresh_: factors[", s, "] and bases[", s, "] must both be float32 or both float64");
  check(basis.is_contiguous(), "refresh_: bases[", s, "] is changed in place: make it contiguous");
  check(selection.dim() == 1 && selection.scalar_type() == ScalarType::Int, "refresh_: selections[",
        s, "] must be 1-D and int32 (torch.arange(n, dtype=torch.int32) selects all)");
  check(basis.size(0) == stack.size(0) || basis.size(0) == selection.size(0), "refresh_: bases[", s,
        "] must be one for each of factors[", s, "], or for each of selections[", s, "]");
  for (const Tensor* tensor : {&stack, &basis, &selection, &all.allowed[s]}) {
    check(tensor->device() == all.factors[0].device(), "refresh_: all of stack ", s,
          " must lie on the device of factors[0]; call refresh_ once per device");
  }
  const Tensor& allowed = all.allowed[s];
  check(allowed.dim() == 1 && allowed.scalar_type() == ScalarType::Bool &&
            allowed.size(0) == selection.size(0),
        "refresh_: allowed[", s, "] must be bool with one entry for each of selections[", s, "]");
}

void check_results(size_t s, const RefreshArguments& all) {
  const Tensor& stack = all.factors[s];
  const int64_t k = all.selections[s].size(0), d = stack.size(1);
  const auto fits = [&](const Tensor& result, ScalarType type, int64_t numel) {
    return result.scalar_type() == type && result.numel() == numel && result.is_contiguous() &&
           result.device() == stack.device();
  };
  check(
      fits(all.orders[s], ScalarType::Long, k * d) && fits(all.outcomes[s], ScalarType::Long, k) &&
          fits(all.carries[s], stack.scalar_type(), k * d * d) &&
          fits(all.off_diagonals[s], stack.scalar_type(), k),
      "refresh_: the results for factors[", s, "] must be contiguous, orders [k, d] and outcomes",
      " [k] int64, carries [k, d, d] and off_diagonals [k] of the factors' dtype, on their device");
}

}  // namespace

void check_refresh(const RefreshArguments& all) {
  for (const TensorList* list : {&all.bases, &all.selections, &all.allowed, &all.orders,
                                 &all.carries, &all.outcomes, &all.off_diagonals}) {
    check(list->size() == all.factors.size(), "refresh_: every list must have one entry per stack");
  }
  for (size_t s = 0; s < all.factors.size(); ++s) {
    check_stack(s, all);
    check_results(s, all);
  }
  if (all.factors.empty() || !all.workspace) return;
  check(all.workspace->dim() == 1 && all.workspace->is_contiguous() &&
            all.workspace->device() == all.factors[0].device(),
        "refresh_: workspace must be 1-D, contiguous and on the device of factors[0]");
}

void refresh_elsewhere(TensorList factors, TensorList, TensorList, TensorList, double, TensorList,
                       TensorList, TensorList, TensorList, Lent) {
  check(factors.empty(), "refresh_: this build of soap_fast has no kernel for the device of the",
        " factors; `soap_fast.extension.build_info()` says what was compiled and why");
}

}  // namespace soap_fast
