// Memory that is read next. What a step looks at lies in a thousand places that no cache holds by
// then, and one after the other they would be waited for.
#pragma once

#include <c10/core/TensorImpl.h>

#include "unchanged/python.h"

namespace soap_fast {

constexpr size_t kLine = 64;
constexpr size_t kBlock = 32;  // objects that are asked for together, and then read

inline void fetch(const void* memory, size_t bytes = 1) {
  for (size_t at = 0; at < bytes; at += kLine) {
    __builtin_prefetch(static_cast<const char*>(memory) + at);
  }
}

inline void fetch(const at::Tensor& tensor) {
  fetch(tensor.unsafeGetTensorImpl(), sizeof(c10::TensorImpl));
}

// Of a tensor that is there.
inline void fetch_storage(const at::Tensor& tensor) {
  if (!tensor.has_storage()) return;
  fetch(tensor.storage().unsafeGetStorageImpl(), sizeof(c10::StorageImpl));
}

// Entries of a state some way behind number `now`: the dict, and where its keys are known to begin.
inline void fetch_entries(const pybind11::list& entries, Py_ssize_t now) {
  constexpr Py_ssize_t kAhead = 4;
  constexpr size_t kKeys = 448;  // bytes for a dozen of them
  const Py_ssize_t size = PyList_GET_SIZE(entries.ptr());
  if (now + 2 * kAhead < size) fetch(PyList_GET_ITEM(entries.ptr(), now + 2 * kAhead));
  if (now + kAhead < size) {
    PyObject* entry = PyList_GET_ITEM(entries.ptr(), now + kAhead);
    if (PyDict_CheckExact(entry)) fetch(reinterpret_cast<PyDictObject*>(entry)->ma_keys, kKeys);
  }
}

}  // namespace soap_fast
