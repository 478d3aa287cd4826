// Side streams and moments in streams by CUDA's runtime; no kernel of ours is in here.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/streams.h"

namespace soap_fast {
namespace {

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it as its own
  throw std::runtime_error(std::string("soap_fast: ") + what + ": " + cudaGetErrorString(error));
}

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }

void* new_event() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "no new CUDA event");
  return event;
}

// Each stream is tried, whatever became of those before it.
cudaError_t wait_for_all(const SideStreams& side, cudaStream_t current) {
  cudaError_t worst = cudaSuccess;
  for (int i = 0; i < kSideStreams; ++i) {
    for (const cudaError_t error :
         {cudaEventRecord(event_of(side.done[i]), stream_of(side.streams[i])),
          cudaStreamWaitEvent(current, event_of(side.done[i]), 0)}) {
      if (error != cudaSuccess) worst = error;
    }
  }
  return worst;
}

}  // namespace

SideStreams::SideStreams() {
  begun = new_event();
  for (int i = 0; i < kSideStreams; ++i) {
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "no new CUDA stream");
    streams[i] = stream;
    done[i] = new_event();
  }
}

Fork::Fork(SideStreams& side, void* current) : side_(side), current_(current) {
  check_cuda(cudaEventRecord(event_of(side.begun), stream_of(current)), "a fork failed");
  for (void* stream : side.streams) {
    check_cuda(cudaStreamWaitEvent(stream_of(stream), event_of(side.begun), 0), "a fork failed");
  }
}

void Fork::join() {
  check_cuda(wait_for_all(side_, stream_of(current_)), "side streams were not joined");
  joined_ = true;
}

Fork::~Fork() {
  if (joined_) return;
  wait_for_all(side_, stream_of(current_));
  for (void* stream : side_.streams) cudaStreamSynchronize(stream_of(stream));
  cudaGetLastError();  // what was thrown says more
}

StreamClock::StreamClock(void* stream) : stream_(stream) { mark(); }

StreamClock::~StreamClock() {
  for (void* moment : moments_) cudaEventDestroy(event_of(moment));
}

void StreamClock::mark() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreate(&event), "no new CUDA event");
  moments_.push_back(event);
  check_cuda(cudaEventRecord(event, stream_of(stream_)), "a moment was not recorded");
}

std::vector<double> StreamClock::microseconds() const {
  check_cuda(cudaEventSynchronize(event_of(moments_.back())), "a kernel failed");
  std::vector<double> times;
  for (size_t i = 1; i < moments_.size(); ++i) {
    float milliseconds = 0;
    check_cuda(
        cudaEventElapsedTime(&milliseconds, event_of(moments_[i - 1]), event_of(moments_[i])),
        "no time between two moments");
    times.push_back(1e3 * milliseconds);
  }
  return times;
}

void zero_memory(void* memory, size_t bytes, void* stream) {
  check_cuda(cudaMemsetAsync(memory, 0, bytes, stream_of(stream)), "memory was not zeroed");
}

}  // namespace soap_fast
