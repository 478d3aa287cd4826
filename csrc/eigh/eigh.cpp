// What eigh does alike on every device: the checks, the solve and its second tries.
#include "eigh/eigh.h"

#include <torch/csrc/stable/ops.h>

#include <array>
#include <limits>
#include <string>

namespace soap_fast {
namespace {

using torch::headeronly::ScalarType;

std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t axis = 0; axis < tensor.dim(); ++axis)
    text << (axis ? ", " : "") << tensor.size(axis);
  text << ']';
  return text.str();
}

Eigenpairs linalg_eigh(const Tensor& packed) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(packed),
                                    torch::stable::detail::from(std::string("L"))};
  call_operator("aten::linalg_eigh", "", stack);
  return {torch::stable::contiguous(torch::stable::detail::to<Tensor>(stack[0])),
          torch::stable::detail::to<Tensor>(stack[1])};
}

// narrow asks for a tensor that it may change; a handle of our own is one.
Tensor factor_of(Tensor batch, int64_t i) { return torch::stable::narrow(batch, 0, i, 1); }

Eigenpairs solve_alone(const Tensor& packed) {
  try {
    return linalg_eigh(packed);
  } catch (const std::exception&) {
    return solve_in_float64(packed);
  }
}

}  // namespace

void check_arguments(const TensorList& factors, const TensorList& selections) {
  check(factors.size() == selections.size(), "eigh: ", factors.size(), " stacks of factors but ",
        selections.size(), " selections; pass one selection per stack");
  for (size_t s = 0; s < factors.size(); ++s) {
    const Tensor& stack = factors[s];
    const Tensor& selection = selections[s];
    check(stack.dim() == 3 && stack.size(1) == stack.size(2), "eigh: factors[", s, "] has shape ",
          shape_of(stack), ", not [n, d, d]; a single factor is factor.unsqueeze(0)");
    check(stack.scalar_type() == ScalarType::Float || stack.scalar_type() == ScalarType::Double,
          "eigh: factors[", s, "] is neither float32 nor float64; convert it first");
    check(selection.dim() == 1 && selection.scalar_type() == ScalarType::Int, "eigh: selections[",
          s, "] has shape ", shape_of(selection),
          "; a selection is 1-D and int32 (torch.arange(n, dtype=torch.int32) selects all)");
    check(stack.device() == factors[0].device() && selection.device() == factors[0].device(),
          "eigh: factors[", s, "] and selections[", s,
          "] must lie on the device of factors[0]; call eigh once per device");
  }
}

std::tuple<Tensor, Tensor> new_results(const Tensor& stack, const Tensor& selection) {
  const int64_t k = selection.size(0), d = stack.size(1);
  return {torch::stable::new_empty(stack, {k, d}), torch::stable::new_empty(stack, {k, d, d})};
}

// The factor has been scaled, so float64 can be cast back without overflow.
Eigenpairs solve_in_float64(const Tensor& packed) {
  try {
    const Eigenpairs wide = linalg_eigh(torch::stable::to(packed, ScalarType::Double));
    return {torch::stable::to(wide.values, packed.scalar_type()),
            torch::stable::to(wide.vectors, packed.scalar_type())};
  } catch (const std::exception&) {
    const int64_t count = packed.size(0), d = packed.size(1);
    Tensor values = torch::stable::new_empty(packed, {count, d});
    torch::stable::fill_(values, std::numeric_limits<double>::quiet_NaN());
    return {values, torch::stable::new_zeros(packed, {count, d, d})};
  }
}

Eigenpairs solve(const Tensor& packed) {
  try {
    return linalg_eigh(packed);
  } catch (const std::exception&) {
    // One factor must not cost the others of its batch their bases.
  }
  const int64_t count = packed.size(0), d = packed.size(1);
  Eigenpairs pairs{torch::stable::new_empty(packed, {count, d}),
                   torch::stable::new_zeros(packed, {count, d, d})};
  for (int64_t i = 0; i < count; ++i) {
    Tensor values = factor_of(pairs.values, i), vectors = factor_of(pairs.vectors, i);
    const Eigenpairs alone = solve_alone(factor_of(packed, i));
    torch::stable::copy_(values, alone.values);
    torch::stable::copy_(vectors, alone.vectors);
  }
  return pairs;
}

Eigh eigh_elsewhere(TensorList factors, TensorList selections) {
  check(
      factors.empty() && selections.empty(), "eigh: this build of soap_fast has no kernel for the",
      " device of the factors; `soap_fast.extension.build_info()` says what was compiled and why");
  return {};
}

}  // namespace soap_fast
