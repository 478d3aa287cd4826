// Which factors of a refresh by Cholesky go together, and what a refresh launches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "refresh/phases/table.h"

namespace soap_fast {

// Workspace of factors that go together: four matrices for each, five where rows are no whole
// quads. More factors are further rounds, as long as a GPU has enough to do in one: this holds ten
// factors of 2560, or 1820 of 192.
constexpr int64_t kMostWorkspaceBytes = int64_t(1) << 30;

// Some of the factors that are selected from one stack.
struct Part {
  size_t stack;
  int64_t first, count, size;

  int64_t d() const { return in_quads(size); }  // in workspace
};

inline int64_t workspace(const Part& part) {
  return slots_in_workspace(part.size) * part.count * part.d() * part.d();
}

// Parts that fit into the workspace together, the largest first: sizes that are near each other
// have nearly as many steps of a factorisation. One factor goes through whatever its size. Where a
// workspace is lent, rounds are cut to its bytes, if there are any.
std::vector<std::vector<Part>> rounds_of(std::vector<Part> parts, int64_t element_bytes,
                                         int64_t lent_bytes);

// By size and dtype: small ones need no workspace but their own, so that all stacks go together.
struct Parts {
  std::vector<Part> small, large;

  void add(const Part& part, int64_t householder_up_to) {
    if (part.count > 0 && part.size > 0) {
      (part.size <= householder_up_to ? small : large).push_back(part);
    }
  }
};

// Numbers of refresh_plan() for each stack that a step works on: which launch, from 0; a Phase, or
// kPhases + a Product, or behind those a PanelProduct; round and step of a RefreshCall; the
// structure of a product, else 0; `top`, `first` and `width` of a PanelProduct, else 0; size and
// number of the factors; into how many parts a phase divides each, 0 for a product.
constexpr int kPlanColumns = 11;

// All kernels and products of a refresh on CUDA in their order: as many rows as stacks have a share
// in one step. Stacks are told by size and number of factors, all of one dtype; `lent_bytes` of
// workspace, or none, are lent.
std::vector<int64_t> refresh_plan(std::vector<int64_t> sizes, std::vector<int64_t> counts,
                                  int64_t element_bytes, int64_t lent_bytes);

}  // namespace soap_fast
