// The twin in Python is `PlainWhereabouts` of soap_fast/backends/unchanged.py.
#pragma once

#include <vector>

#include "unchanged/metadata.h"
#include "unchanged/python.h"

namespace soap_fast {

// Where the tensors in some entries of the state lie.
class Whereabouts {
 public:
  // Names of an entry's values: tensors that must stay where they are, and lists of such tensors or
  // None. Throws TypeError where an entry has others.
  Whereabouts(pybind11::list entries, pybind11::tuple tensors, pybind11::tuple lists);

  // Whether all of it is as it was.
  bool same() const;

 private:
  // Calls `look` with the tensors that stand under those names, until it says false.
  template <typename Look>
  bool walk(const Look& look) const;

  pybind11::list entries_;
  pybind11::tuple names_of_tensors_, names_of_lists_;
  std::vector<int64_t> addresses_;
  Metadata metadata_;
};

}  // namespace soap_fast
