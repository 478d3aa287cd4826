#include "unchanged/parameters.h"

#include <utility>

namespace soap_fast {

namespace py = pybind11;

namespace {

Metadata seen(const py::list& tensors) {
  Metadata found;
  for (const py::handle one : tensors) {
    const at::Tensor* tensor = plain_tensor(one.ptr());
    if (!tensor) throw py::type_error("not all are plain tensors");
    found.add(*tensor);
  }
  return found;
}

py::bytes room_for_addresses(size_t n) { return py::bytes(nullptr, n * sizeof(int64_t)); }

int64_t* start_of(const py::bytes& addresses) {
  return reinterpret_cast<int64_t*>(PyBytes_AS_STRING(addresses.ptr()));
}

}  // namespace

Parameters::Parameters(const py::list& params, const py::list& grads)
    : params_(seen(params)), grads_(seen(grads)) {
  if (params_.size() != grads_.size()) throw py::type_error("not one gradient for each");
}

py::object Parameters::look(const py::list& params) const {
  const size_t n = params_.size();
  if (params.size() != n) return py::none();
  const py::bytes of_grads = room_for_addresses(n), of_params = room_for_addresses(n);
  Kept kept;
  kept.gradients.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    const at::Tensor* param = plain_tensor(PyList_GET_ITEM(params.ptr(), i));
    if (!param || !params_.holds(i, *param)) return py::none();
    const at::Tensor& grad = param->unsafeGetTensorImpl()->grad();
    if (!grad.defined() || !grads_.holds(i, grad)) return py::none();
    start_of(of_grads)[i] = address_of(grad);
    start_of(of_params)[i] = address_of(*param);
    kept.gradients.push_back(grad);
  }
  return py::make_tuple(of_grads, of_params, std::move(kept));
}

}  // namespace soap_fast
