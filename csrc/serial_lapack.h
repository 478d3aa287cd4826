// LAPACK on one thread per worker of a parallel region.
#pragma once

namespace soap_fast {

// While it lives, MKL calls of this thread keep to this thread.
//
// Without it they do so inside a parallel region only until torch.set_num_threads is called. From
// then on MKL splits its work for that many threads, is given one, and returns numbers of which a
// part was never computed (MKL 2024.2 in torch 2.13: ssyevd from d = 700 on). A LAPACK other than
// MKL is left alone.
class SerialLapack {
 public:
  SerialLapack();
  ~SerialLapack();
  SerialLapack(const SerialLapack&) = delete;
  SerialLapack& operator=(const SerialLapack&) = delete;

 private:
  int threads_before_;
};

}  // namespace soap_fast
