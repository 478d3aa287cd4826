// The twin in Python is `PlainParameters` of soap_fast/backends/metadata.py.
#pragma once

#include <vector>

#include "unchanged/metadata.h"
#include "unchanged/python.h"

namespace soap_fast {

// Keeps gradients alive for as long as a step reads their memory.
struct Kept {
  std::vector<at::Tensor> gradients;
};

// Some parameters and their gradients, as they were.
class Parameters {
 public:
  // Throws TypeError where one is no tensor of torch's own two classes.
  Parameters(const pybind11::list& params, const pybind11::list& grads);

  // Addresses of the gradients and of the parameters, [n] int64 each in bytes, and `Kept`. None
  // where anything but addresses is not as it was, or a gradient is missing.
  pybind11::object look(const pybind11::list& params) const;

 private:
  Metadata params_, grads_;
};

}  // namespace soap_fast
