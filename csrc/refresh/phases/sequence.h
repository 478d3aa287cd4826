// A refresh as a sequence of kernels and batched products: what runs, and in which order.
//
// Source: the QR of the Cholesky factor. H = QᵀKQ = L1 L1ᵀ gives QR(KQ).Q = Q QR(L1).Q, and L1 with
// its columns normalised is well conditioned: its QR may go by a Cholesky factorisation in turn.
#pragma once

#include "linalg/product_structure.h"
#include "refresh/phases/examine.h"
#include "refresh/phases/factorise.h"
#include "refresh/phases/panels.h"
#include "refresh/phases/polish.h"
#include "refresh/phases/set_apart.h"
#include "refresh/phases/small.h"

namespace soap_fast {

enum class Phase {
  kSmall,  // all of a refresh for factors of at most kHouseholderUpTo
  kGather,
  kSetApart,
  kExamine,
  kDecide,
  kArrange,
  kFactorColumns,
  kNormalise,
  kSolve,
  kResidual,
  kJudge,
  kCommit,
};
constexpr int kPhases = int(Phase::kCommit) + 1;

// The products of matrices between them, each of all factors at once.
enum class Product {
  kTimesFactor,  // QᵀK
  kRotate,       // H = QᵀKQ
  kColumnGram,   // BᵀB
  kExpand,       // Q B
  kBasisGram,    // XᵀX
  kSeries,       // -(E/2 + 3/8 E²)
  kCorrection,   // Xᵀ + (E/2 + 3/8 E²) Xᵀ
  kCarry,        // QᵀX, or XᵀQ
};
constexpr int kProducts = int(Product::kCarry) + 1;

// out = a bᵀ, or out - a bᵀ. E² is so small that its operands may be rounded.
struct Operands {
  Slot a, b, out;
  int structure;
};

// turned: the carrying matrix is written by columns.
constexpr Operands operands_of(Product product, bool turned = false) {
  switch (product) {
    case Product::kTimesFactor:  // K is its own transpose
      return {Slot::kBasis, Slot::kFactor, Slot::kCarry, 0};
    case Product::kRotate:
      return {Slot::kCarry, Slot::kBasis, Slot::kRotated, kSymmetric};
    case Product::kColumnGram:
      return {Slot::kFactor, Slot::kFactor, Slot::kRotated, kSymmetric | kRightLower | kLeftUpper};
    case Product::kExpand:
      return {Slot::kCarry, Slot::kFactor, Slot::kResult, kRightLower};
    case Product::kBasisGram:
      return {Slot::kFactor, Slot::kFactor, Slot::kRotated, kSymmetric};
    case Product::kSeries:
      return {Slot::kCarry, Slot::kCarry, Slot::kRotated, kSymmetric | kSubtract | kRounded};
    case Product::kCorrection:
      return {Slot::kRotated, Slot::kResult, Slot::kFactor, kSubtract};
    default:
      if (turned) return {Slot::kFactor, Slot::kBasis, Slot::kCarry, 0};
      return {Slot::kBasis, Slot::kFactor, Slot::kCarry, 0};
  }
}

// visit(a phase as a value), for a caller that makes a kernel of its type.
template <typename T, typename Visit>
auto visit_phase(Phase phase, const Visit& visit) {
  switch (phase) {
    case Phase::kSmall:
      return visit(RefreshSmall());
    case Phase::kGather:
      return visit(GatherRows<T>());
    case Phase::kSetApart:
      return visit(SetApart());
    case Phase::kExamine:
      return visit(ExamineRow());
    case Phase::kDecide:
      return visit(Decide());
    case Phase::kArrange:
      return visit(ArrangeRows<T>());
    case Phase::kFactorColumns:
      return visit(FactorColumns<T>());
    case Phase::kNormalise:
      return visit(NormaliseColumns<T>());
    case Phase::kSolve:
      return visit(SolveRows<T>());
    case Phase::kResidual:
      return visit(ResidualRow());
    case Phase::kJudge:
      return visit(Judge());
    default:
      return visit(CommitRows<T>());
  }
}

// Runs a phase on CUDA for all factors of a table. Returns nullptr, or CUDA's words for what went
// wrong.
template <typename T>
const char* launch_refresh(Phase phase, const RefreshTable<T>& table, RefreshCall call,
                           void* stream);

// Elements of memory that a team's run() may use: of a block, for tiles of up to `largest`.
template <typename T>
constexpr int kBlockScratch = kStagingElements<T> + 2 * kTileElements<T>;

// launch(phase, call) runs a phase for all factors, multiply(product) makes that product of each of
// them, multiply_panel(product, call) that of each that has the panel. `largest` is the largest d.
// The number of launches depends on that alone, not on how many factors there are.
template <typename T, typename Launch, typename Multiply, typename MultiplyPanel>
void refresh_large(int largest, const Launch& launch, const Multiply& multiply,
                   const MultiplyPanel& multiply_panel) {
  const auto factorise = [&](int round) {
    const int tiles = tiles_of(largest, kTile<T>);
    for (int step = 0; step < tiles; step += kPanelTiles<T>) {
      const int left = tiles - step;
      const RefreshCall call{round, step, left < kPanelTiles<T> ? left : kPanelTiles<T>};
      if (step > 0) multiply_panel(PanelProduct::kUpdatePanel, call);
      launch(Phase::kFactorColumns, call);
    }
  };
  const auto solve = [&] {
    for (int step = 0; step * kTile<T> < largest; step += kPanelTiles<T>) {
      const RefreshCall call{kOfRotated, step};
      if (step > 0) multiply_panel(PanelProduct::kSolvePanel, call);
      launch(Phase::kSolve, call);
    }
  };
  const RefreshCall first{kOfRotated, 0};

  launch(Phase::kGather, first);
  launch(Phase::kSetApart, first);
  multiply(Product::kTimesFactor);  // QᵀK
  multiply(Product::kRotate);       // H = QᵀKQ
  launch(Phase::kExamine, first);
  launch(Phase::kDecide, first);
  launch(Phase::kArrange, first);
  factorise(kOfRotated);             // H = L1 L1ᵀ
  launch(Phase::kNormalise, first);  // B
  multiply(Product::kColumnGram);    // BᵀB
  multiply(Product::kExpand);        // Q B
  factorise(kOfColumns);             // BᵀB = L2 L2ᵀ
  solve();                           // X = Q B L2^-T
  multiply(Product::kBasisGram);     // XᵀX
  launch(Phase::kResidual, first);
  launch(Phase::kJudge, first);
  multiply(Product::kSeries);      // E/2 + 3/8 E²
  multiply(Product::kCorrection);  // X is orthogonal
  multiply(Product::kCarry);       // QᵀX
  launch(Phase::kCommit, first);
}

}  // namespace soap_fast
