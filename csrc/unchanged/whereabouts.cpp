#include "unchanged/whereabouts.h"

#include <utility>

namespace soap_fast {

namespace py = pybind11;

namespace {

// A value of an entry, null where there is none.
PyObject* value(py::handle entry, py::handle name) {
  PyObject* found = PyDict_GetItemWithError(entry.ptr(), name.ptr());
  if (!found && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

}  // namespace

template <typename Look>
bool Whereabouts::walk(const Look& look) const {
  const auto holds = [&](PyObject* found) {
    const at::Tensor* plain = found ? plain_tensor(found) : nullptr;
    return plain && look(*plain);
  };
  for (const py::handle entry : entries_) {
    for (const py::handle name : names_of_tensors_) {
      if (!holds(value(entry, name))) return false;
    }
    for (const py::handle name : names_of_lists_) {
      PyObject* list = value(entry, name);
      if (!list || !PyList_Check(list)) return false;
      for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
        PyObject* found = PyList_GET_ITEM(list, i);
        if (found != Py_None && !holds(found)) return false;
      }
    }
  }
  return true;
}

Whereabouts::Whereabouts(py::list entries, py::tuple tensors, py::tuple lists)
    : entries_(std::move(entries)),
      names_of_tensors_(std::move(tensors)),
      names_of_lists_(std::move(lists)) {
  for (const py::handle entry : entries_) {
    if (!PyDict_CheckExact(entry.ptr())) throw py::type_error("an entry is no dict");
  }
  const auto note = [&](const at::Tensor& tensor) {
    addresses_.push_back(address_of(tensor));
    metadata_.add(tensor);
    return true;
  };
  if (!walk(note)) throw py::type_error("an entry holds other values than plain tensors");
}

bool Whereabouts::same() const {
  size_t tensors = 0;
  const auto lies_there = [&](const at::Tensor& tensor) {
    if (tensors == addresses_.size() || address_of(tensor) != addresses_[tensors]) return false;
    return metadata_.holds(tensors++, tensor);
  };
  return walk(lies_there) && tensors == addresses_.size();
}

}  // namespace soap_fast
