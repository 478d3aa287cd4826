// One factor's refresh on the CPU. No torch: pointers, sizes, strides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "refresh/phases/outcome.h"

namespace soap_fast {

// K [d, d], symmetric, of any strides, in elements.
template <typename T>
struct FactorView {
  const T* data;
  int64_t row_stride, column_stride;
};

// What a refresh writes beside the basis.
template <typename T>
struct FactorResult {
  int64_t* order;    // [d]
  T* carry;          // [d, d], row-major
  bool turned;       // then it is column-major
  int64_t* outcome;  // an Outcome
  T* off_diagonal;
};

// A worker's memory, which grows to what its largest factor needs; what it held is then lost.
class Scratch {
 public:
  char* at_least(size_t bytes) {
    if (bytes > size_) {
      memory_.reset(new char[bytes]);  // not make_unique, which would write to all of it
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  size_t size_ = 0;
  std::unique_ptr<char[]> memory_;
};

// basis [d, d], row-major, follows the factor; all that is written is defined in
// soap_fast/step/refresh.py. Bits depend on the factor's values and the basis alone.
template <typename T>
void refresh_factor(int64_t d, const FactorView<T>& factor, T* basis, double tolerance,
                    const FactorResult<T>& result, Scratch& scratch);

// What is written where the basis stays.
template <typename T>
void leave_factor(int64_t d, Outcome why, const FactorResult<T>& result);

}  // namespace soap_fast
