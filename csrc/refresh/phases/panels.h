// What reaches from one panel of columns into another, of the factorisations and of the solve:
// grouped products of all factors that have the panel, by far the most of what both compute.
#pragma once

#include "refresh/phases/factorise.h"

namespace soap_fast {

enum class PanelProduct {
  kUpdatePanel,  // a panel of what is factored, without the products of all columns before it
  kSolvePanel,   // a panel of X L2ᵀ = Q B, without what X's columns before it contribute
};

// out[top:, first:first + width] -= a[top:, :first] b[first:first + width, :first]ᵀ, where matrices
// end earlier up to their last column.
//
// Of L it reads nothing but what lies below its diagonal tiles, where L2's inverses are. Above the
// diagonal of a panel that is updated stands no number of meaning, before or after: nothing reads
// it.
struct PanelOperands {
  Slot a, b, out;
  int top, first, width;
};

template <typename T>
constexpr PanelOperands operands_of(PanelProduct product, RefreshCall call) {
  const int first = call.step * kTile<T>;
  if (product == PanelProduct::kSolvePanel) {
    return {Slot::kResult, Slot::kCarry, Slot::kResult, 0, first, kPanel};
  }
  const Round of = Round::of(call);
  return {of.target, of.target, of.source, first, first, kPanel};
}

}  // namespace soap_fast
