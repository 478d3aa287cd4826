// soap_fast._build_info: what was built, with what. Tensors never come here.
#include "build_info.h"

#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

namespace {

py::object none_if_empty(const char* text) {
  return *text ? py::object(py::str(text)) : py::object(py::none());
}

py::dict build_info() {
  using namespace py::literals;
  const bool cuda = std::string(SOAP_FAST_CUDA_MISSING_BECAUSE).empty();
  return py::dict(
      "version"_a = SOAP_FAST_VERSION, "compiler"_a = SOAP_FAST_COMPILER,
      "build_type"_a = SOAP_FAST_BUILD_TYPE, "flags"_a = SOAP_FAST_FLAGS,
      "cxx_standard"_a = SOAP_FAST_CXX_STANDARD, "torch_built_with"_a = SOAP_FAST_TORCH_VERSION,
      "torch_commit"_a = SOAP_FAST_TORCH_COMMIT, "torch_target"_a = SOAP_FAST_TORCH_TARGET_VERSION,
      "cuda"_a = cuda, "cuda_missing_because"_a = none_if_empty(SOAP_FAST_CUDA_MISSING_BECAUSE),
      "cuda_version"_a = none_if_empty(cuda ? SOAP_FAST_CUDA_VERSION : ""),
      "cuda_architectures"_a = none_if_empty(cuda ? SOAP_FAST_CUDA_ARCHITECTURES : ""));
}

}  // namespace

PYBIND11_MODULE(_build_info, module) {
  module.doc() = "Facts about the build of soap_fast's extension; see soap_fast.extension.";
  module.def("build_info", &build_info, "The facts, as a new dict of plain values.");
}
