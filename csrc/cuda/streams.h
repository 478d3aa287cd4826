// torch's current CUDA stream, and a few beside it for work of which no single piece fills the
// device. No torch header; what goes wrong is thrown as std::runtime_error with CUDA's words.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace soap_fast {

// A cudaStream_t. Raises if this process has not loaded a torch with CUDA.
void* current_cuda_stream(int32_t device_index);

// A batch of ten factors of 200 leaves most of a GPU idle, a hundred of 1000 fill it alone: a few
// streams are enough for the former, and each costs a workspace. Not measured.
constexpr int kSideStreams = 4;

// Of the device that is current when they are made. They are not taken down again: CUDA may be gone
// before static objects are.
struct SideStreams {
  SideStreams();

  std::array<void*, kSideStreams> streams{};  // cudaStream_t, waiting for no default stream
  std::array<void*, kSideStreams> done{};     // cudaEvent_t
  void* begun = nullptr;                      // cudaEvent_t
};

// While it lives the side streams may work: after everything that was on `current` before, and
// before everything that comes after. Memory of `current` that is taken before a fork and given
// back after it is therefore safe. One at a time for a set of streams.
class Fork {
 public:
  Fork(SideStreams& side, void* current);
  // Left by an exception, it waits on the host as well: buffers on the host are then freed.
  ~Fork();
  Fork(const Fork&) = delete;
  Fork& operator=(const Fork&) = delete;

  void join();

 private:
  SideStreams& side_;
  void* current_;
  bool joined_ = false;
};

// Moments in a stream: when all before them is done.
class StreamClock {
 public:
  explicit StreamClock(void* stream);  // and its first moment
  ~StreamClock();
  StreamClock(const StreamClock&) = delete;
  StreamClock& operator=(const StreamClock&) = delete;

  void mark();
  // From each moment to the next; waits for the last.
  std::vector<double> microseconds() const;

 private:
  void* stream_;
  std::vector<void*> moments_;  // cudaEvent_t
};

void zero_memory(void* memory, size_t bytes, void* stream);

}  // namespace soap_fast
