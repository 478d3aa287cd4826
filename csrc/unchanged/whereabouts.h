// The twin in Python is `PlainWhereabouts` of soap_fast/backends/unchanged.py.
#pragma once

#include <vector>

#include "unchanged/metadata.h"
#include "unchanged/python.h"

namespace soap_fast {

// Where the tensors in some entries of the state lie.
class Whereabouts {
 public:
  // Names of an entry's values: those that must stay the same objects, tensors that must stay where
  // they are, and lists of such tensors or None. Throws TypeError where an entry has others.
  Whereabouts(pybind11::list entries, pybind11::tuple objects, pybind11::tuple tensors,
              pybind11::tuple lists);

  // Whether all of it is as it was.
  bool same() const;

 private:
  // Calls `object` and `tensor` with what stands under those names, until one says false.
  template <typename Object, typename Tensor>
  bool walk(const Object& object, const Tensor& tensor) const;

  pybind11::list entries_;
  pybind11::tuple names_of_objects_, names_of_tensors_, names_of_lists_;
  std::vector<pybind11::object> objects_;
  std::vector<int64_t> addresses_;
  Metadata metadata_;
};

}  // namespace soap_fast
