#include "unchanged/whereabouts.h"

#include <array>
#include <utility>

#include "unchanged/fetch.h"

namespace soap_fast {

namespace py = pybind11;

namespace {

// A value of an entry, null where there is none.
PyObject* value(py::handle entry, py::handle name) {
  PyObject* found = PyDict_GetItemWithError(entry.ptr(), name.ptr());
  if (!found && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

// Looks at objects as `look` does, some behind the last one that is added, when their memory is
// there.
template <typename Look>
class Block {
 public:
  explicit Block(const Look& look) : look_(look) {}

  bool add(PyObject* object) {
    fetch(object);
    objects_[count_++] = object;
    return count_ < kBlock || look();
  }
  bool look() {
    for (size_t i = 0; i < count_; ++i) {
      tensors_[i] = plain_tensor(objects_[i]);
      if (!tensors_[i]) return false;
      fetch(*tensors_[i]);
    }
    for (size_t i = 0; i < count_; ++i) fetch_storage(*tensors_[i]);
    for (size_t i = 0; i < count_; ++i) {
      if (!look_(*tensors_[i])) return false;
    }
    count_ = 0;
    return true;
  }

 private:
  const Look& look_;
  size_t count_ = 0;
  std::array<PyObject*, kBlock> objects_;
  std::array<const at::Tensor*, kBlock> tensors_;
};

}  // namespace

template <typename Look>
bool Whereabouts::walk(const Look& look) const {
  Block<Look> block(look);
  for (Py_ssize_t now = 0; now < PyList_GET_SIZE(entries_.ptr()); ++now) {
    fetch_entries(entries_, now);
    const py::handle entry = PyList_GET_ITEM(entries_.ptr(), now);
    for (const py::handle name : names_of_tensors_) {
      PyObject* found = value(entry, name);
      if (!found || !block.add(found)) return false;
    }
    for (const py::handle name : names_of_lists_) {
      PyObject* list = value(entry, name);
      if (!list || !PyList_Check(list)) return false;
      for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
        PyObject* found = PyList_GET_ITEM(list, i);
        if (found != Py_None && !block.add(found)) return false;
      }
    }
  }
  return block.look();
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
