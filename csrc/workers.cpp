#include "workers.h"

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>

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

// While it lives, MKL calls of this thread keep to this thread.
//
// Without it they do so inside a parallel region only until torch.set_num_threads is called. From
// then on MKL splits its work for that many threads, is given one, and returns numbers of which a
// part was never computed (MKL 2024.2 in torch 2.13: ssyevd from d = 700 on). A LAPACK other than
// MKL is left alone.
class SerialLapack {
 public:
  SerialLapack() : threads_before_(0) {
    // torch sets a thread's count when it first asks for it; were that later, it would undo ours.
    torch::stable::get_num_threads();
    if (set_threads()) threads_before_ = set_threads()(1);
  }
  ~SerialLapack() {
    if (set_threads()) set_threads()(threads_before_);
  }
  SerialLapack(const SerialLapack&) = delete;
  SerialLapack& operator=(const SerialLapack&) = delete;

 private:
  int threads_before_;
};

}  // namespace

void share_out(int64_t first, int64_t end, int64_t workers, const RunPiece& run) {
  std::atomic<int64_t> next{first}, entered{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    const SerialLapack serial;
    const int64_t worker = entered++;
    if (worker >= workers) return;
    for (int64_t piece = next++; piece < end; piece = next++) run(piece, worker);
  });
}

}  // namespace soap_fast
