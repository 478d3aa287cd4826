#include "serial_lapack.h"

#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>

namespace soap_fast {
namespace {

// MKL's own C function, of the copy that libtorch_cpu contains or loads. 0 stands for "as the rest
// of the process".
using SetThreadsOfThisThread = int (*)(int threads);

SetThreadsOfThisThread set_threads() {
  static const auto found =
      reinterpret_cast<SetThreadsOfThisThread>(dlsym(RTLD_DEFAULT, "MKL_Set_Num_Threads_Local"));
  return found;
}

}  // namespace

SerialLapack::SerialLapack() : threads_before_(0) {
  // torch sets a thread's count when it first asks for it; were that later, it would undo ours.
  torch::stable::get_num_threads();
  if (set_threads()) threads_before_ = set_threads()(1);
}

SerialLapack::~SerialLapack() {
  if (set_threads()) set_threads()(threads_before_);
}

}  // namespace soap_fast
