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

template <typename Object, typename Tensor>
bool Whereabouts::walk(const Object& object, const Tensor& tensor) const {
  const auto look = [&](PyObject* found) {
    const at::Tensor* plain = found ? plain_tensor(found) : nullptr;
    return plain && tensor(*plain);
  };
  for (const py::handle entry : entries_) {
    for (const py::handle name : names_of_objects_) {
      PyObject* found = value(entry, name);
      if (!found || !object(found)) return false;
    }
    for (const py::handle name : names_of_tensors_) {
      if (!look(value(entry, name))) return false;
    }
    for (const py::handle name : names_of_lists_) {
      PyObject* list = value(entry, name);
      if (!list || !PyList_Check(list)) return false;
      for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
        PyObject* found = PyList_GET_ITEM(list, i);
        if (found != Py_None && !look(found)) return false;
      }
    }
  }
  return true;
}

Whereabouts::Whereabouts(py::list entries, py::tuple objects, py::tuple tensors, py::tuple lists)
    : entries_(std::move(entries)),
      names_of_objects_(std::move(objects)),
      names_of_tensors_(std::move(tensors)),
      names_of_lists_(std::move(lists)) {
  for (const py::handle entry : entries_) {
    if (!PyDict_CheckExact(entry.ptr())) throw py::type_error("an entry is no dict");
  }
  const auto keep = [&](PyObject* object) {
    objects_.push_back(py::reinterpret_borrow<py::object>(object));
    return true;
  };
  const auto note = [&](const at::Tensor& tensor) {
    addresses_.push_back(address_of(tensor));
    metadata_.add(tensor);
    return true;
  };
  if (!walk(keep, note)) throw py::type_error("an entry holds other values than plain tensors");
}

bool Whereabouts::same() const {
  size_t objects = 0, tensors = 0;
  const auto is_same = [&](PyObject* object) {
    return objects < objects_.size() && objects_[objects++].ptr() == object;
  };
  const auto lies_there = [&](const at::Tensor& tensor) {
    if (tensors == addresses_.size() || address_of(tensor) != addresses_[tensors]) return false;
    return metadata_.holds(tensors++, tensor);
  };
  return walk(is_same, lies_there) && tensors == addresses_.size();
}

}  // namespace soap_fast
