// soap_fast._unchanged: what Python's tensors are now beside what they were, a thousand in one
// call. It knows torch's own classes, so it is loaded by the build of torch that it was made with
// and by no other: soap_fast/extension.py. Twins in Python do the same elsewhere.
#include "unchanged/fetch.h"
#include "unchanged/parameters.h"
#include "unchanged/whereabouts.h"

namespace py = pybind11;

namespace soap_fast {
namespace {

// As torch.autograd.graph.increment_version: a graph that has saved one of these will raise.
void count_writes(const py::list& tensors) {
  for (const py::handle one : tensors) {
    if (!THPVariable_Check(one.ptr())) throw py::type_error("not a tensor");
    const at::Tensor& tensor = THPVariable_Unpack(one.ptr());
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

// `calls` of these entries of the state, by one.
void count_calls(const py::list& entries, const py::str& calls) {
  const py::int_ one(1);
  for (const py::handle entry : entries) {
    const auto before =
        py::reinterpret_steal<py::object>(PyObject_GetItem(entry.ptr(), calls.ptr()));
    if (!before) throw py::error_already_set();
    const auto now = py::reinterpret_steal<py::object>(PyNumber_Add(before.ptr(), one.ptr()));
    if (!now || PyObject_SetItem(entry.ptr(), calls.ptr(), now.ptr()))
      throw py::error_already_set();
  }
}

// By how many calls the clocks of these entries have moved on, all alike; None where they have not.
py::object calls_since(const py::list& entries, const py::str& calls, const py::list& clocks) {
  const Py_ssize_t n = PyList_GET_SIZE(entries.ptr());
  if (n == 0 || PyList_GET_SIZE(clocks.ptr()) != n) return py::none();
  long long passed = 0;
  for (Py_ssize_t i = 0; i < n; ++i) {
    fetch_entries(entries, i);
    const auto now = py::reinterpret_steal<py::object>(
        PyObject_GetItem(PyList_GET_ITEM(entries.ptr(), i), calls.ptr()));
    if (!now) throw py::error_already_set();
    const long long since =
        PyLong_AsLongLong(now.ptr()) - PyLong_AsLongLong(PyList_GET_ITEM(clocks.ptr(), i));
    if (PyErr_Occurred()) throw py::error_already_set();
    if (i > 0 && since != passed) return py::none();
    passed = since;
  }
  return py::int_(passed);
}

}  // namespace
}  // namespace soap_fast

PYBIND11_MODULE(_unchanged, module) {
  using namespace soap_fast;
  module.doc() = "Comparisons of Python's tensors with what they were; see soap_fast.extension.";
  py::class_<Kept>(module, "Kept");
  py::class_<Parameters>(module, "Parameters")
      .def(py::init<const py::list&, const py::list&>())
      .def("look", &Parameters::look);
  py::class_<Whereabouts>(module, "Whereabouts")
      .def(py::init<py::list, py::tuple, py::tuple>())
      .def("same", &Whereabouts::same);
  module.def("count_writes", &count_writes);
  module.def("count_calls", &count_calls);
  module.def("calls_since", &calls_since);
}
