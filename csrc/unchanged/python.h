// Tensors and entries of the state as Python has them.
#pragma once

// Before pybind11, of which torch brings its own.
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>

namespace soap_fast {

// The tensor of an object; null where it is none, or of a class whose attributes may mean another
// thing than torch's own.
inline const at::Tensor* plain_tensor(PyObject* object) {
  return THPVariable_CheckExact(object) ? &THPVariable_Unpack(object) : nullptr;
}

}  // namespace soap_fast
