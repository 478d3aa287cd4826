// eigh by cuSOLVER, torch's side: memory, handles, and what is left for others to solve.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "cuda/cusolver.h"
#include "cuda/streams.h"
#include "eigh/batches.h"
#include "eigh/cuda.h"

namespace soap_fast {
namespace {

using torch::headeronly::ScalarType;

// torch loads its linear algebra when it is first asked to solve something on a GPU.
const CuSolver* torchs_cusolver(const Tensor& on_the_gpu) {
  static const std::optional<CuSolver> found = [&] {
    solve(torch::stable::new_zeros(on_the_gpu, {1, 1, 1}));
    return find_cusolver();
  }();
  return found ? &*found : nullptr;
}

// One per device, made once and kept: making a handle allocates on the device, which waits for it.
struct Solvers {
  explicit Solvers(const CuSolver& functions) : functions(functions) {
    succeed(functions.cusolverDnCreateParams(&params), "cusolverDnCreateParams");
    for (int i = 0; i < kSideStreams; ++i) {
      succeed(functions.cusolverDnCreate(&handles[i]), "cusolverDnCreate");
      succeed(functions.cusolverDnSetStream(handles[i], side.streams[i]), "cusolverDnSetStream");
    }
  }

  static void succeed(int status, const char* what) {
    check(status == kCuSolverSuccess, "soap_fast: ", what, " failed with status ", status);
  }

  const CuSolver& functions;
  SideStreams side;
  std::array<void*, kSideStreams> handles{};
  void* params = nullptr;
  std::mutex mutex;  // a handle serves one thread at a time
};

// nullptr where there is no such solver; the next call asks again.
Solvers* solvers_of(const Tensor& on_the_gpu) {
  const CuSolver* functions = torchs_cusolver(on_the_gpu);
  if (!functions) return nullptr;
  static std::mutex mutex;
  static auto& of_devices = *new std::map<int32_t, std::unique_ptr<Solvers>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Solvers>& solvers = of_devices[on_the_gpu.get_device_index()];
  try {
    if (!solvers) solvers = std::make_unique<Solvers>(*functions);
  } catch (const std::exception&) {
    // torch's own route needs less: it goes factor by factor on one stream.
  }
  return solvers.get();
}

int type_of(const StackCall& call) { return call.is_wide() ? kFloat64 : kFloat32; }

// Where a batch keeps its parts within the memory of its stream, in bytes.
struct Layout {
  size_t values, scales, places, infos, workspace, end;  // packed stands at 0
  size_t device_bytes, host_bytes;                       // cuSOLVER's own
};

std::optional<Layout> layout_of(const Solvers& solvers, const StackCall& call, int64_t count) {
  const int64_t d = call.d();
  const int type = type_of(call);
  Layout layout;
  if (solvers.functions.cusolverDnXsyevBatched_bufferSize(
          solvers.handles[0], solvers.params, kEigenvectors, kUpperTriangle, d, type, nullptr, d,
          type, nullptr, type, &layout.device_bytes, &layout.host_bytes,
          count) != kCuSolverSuccess) {
    return std::nullopt;
  }
  const auto behind = [](size_t begin, size_t bytes) {
    return (begin + bytes + 255) / 256 * 256;  // torch's and CUDA's own alignment
  };
  const size_t element = call.is_wide() ? sizeof(double) : sizeof(float);
  layout.values = behind(0, count * d * d * element);
  layout.scales = behind(layout.values, count * d * element);
  layout.places = behind(layout.scales, count * element);
  layout.infos = behind(layout.places, count * (d + 1) * sizeof(int32_t));
  layout.workspace = behind(layout.infos, count * sizeof(int));
  layout.end = behind(layout.workspace, layout.device_bytes);
  return layout;
}

// Packs, solves and unpacks on the batch's stream; false if cuSOLVER refuses.
template <typename T>
bool launch(const Solvers& solvers, const StackCall& call, const Batch& batch, const Tensor& memory,
            std::vector<std::vector<char>>& host_memory, int32_t* failed) {
  const std::optional<Layout> layout = layout_of(solvers, call, batch.count);
  if (!layout) return false;
  const int64_t d = call.d();
  void* stream = solvers.side.streams[batch.stream];
  char* begin = static_cast<char*>(memory.mutable_data_ptr());
  T* packed = reinterpret_cast<T*>(begin);
  T* values = reinterpret_cast<T*>(begin + layout->values);
  T* scales = reinterpret_cast<T*>(begin + layout->scales);
  int32_t* places = reinterpret_cast<int32_t*>(begin + layout->places);
  int* infos = reinterpret_cast<int*>(begin + layout->infos);
  check_launch(launch_eigh_pack(matrices_of<T>(call.stack), call.part(batch.first, batch.count), d,
                                scales, places, packed, stream));
  // cuSOLVER 11.7.1 (CUDA 12.6) takes its workspace to be zero and gives wrong vectors where it
  // is not (pytorch/pytorch issue 192483). Writing 256 MiB takes a GPU 0.1 ms.
  zero_memory(infos, layout->end - layout->infos, stream);
  host_memory.emplace_back(layout->host_bytes);
  const int type = type_of(call);
  // Our rows are cuSOLVER's columns: our lower triangle is its upper one, and it leaves each
  // vector in a row of ours.
  if (solvers.functions.cusolverDnXsyevBatched(
          solvers.handles[batch.stream], solvers.params, kEigenvectors, kUpperTriangle, d, type,
          packed, d, type, values, type, begin + layout->workspace, layout->device_bytes,
          host_memory.back().data(), layout->host_bytes, infos, batch.count) != kCuSolverSuccess) {
    return false;
  }
  const Solution<T> solution{values, {packed, d * d, 1, d}, infos};
  check_launch(launch_eigh_unpack(solution, scales, places, batch.count, d,
                                  call.eigenvalues_from<T>(batch.first),
                                  call.bases_from<T>(batch.first), failed, stream));
  return true;
}

std::vector<Batch> plan(const Solvers& solvers, const std::vector<StackCall>& calls) {
  std::vector<StackSize> sizes;
  for (const StackCall& call : calls) sizes.push_back({call.d(), call.k()});
  const auto bytes_of = [&](size_t c, int64_t count) -> std::optional<size_t> {
    const std::optional<Layout> layout = layout_of(solvers, calls[c], count);
    return layout ? std::optional<size_t>(layout->end) : std::nullopt;
  };
  return plan_batches(sizes, bytes_of, kSideStreams);
}

// Bytes of torch's for each side stream, enough for any of its batches.
std::vector<Tensor> memory_for(const std::vector<Batch>& batches, const Tensor& on_the_gpu) {
  std::array<size_t, kSideStreams> bytes{};
  for (const Batch& batch : batches)
    bytes[batch.stream] = std::max(bytes[batch.stream], batch.bytes);
  std::vector<Tensor> memory;
  for (const size_t size : bytes) {
    memory.push_back(
        torch::stable::new_empty(on_the_gpu, {static_cast<int64_t>(size)}, ScalarType::Byte));
  }
  return memory;
}

std::vector<Leftover> without_batch(const std::vector<StackCall>& calls,
                                    const std::vector<Batch>& batches) {
  std::vector<bool> planned(calls.size());
  for (const Batch& batch : batches) planned[batch.stack] = true;
  std::vector<Leftover> leftovers;
  for (size_t c = 0; c < calls.size(); ++c) {
    if (!planned[c]) leftovers.push_back({c, 0, calls[c].k(), false});
  }
  return leftovers;
}

// Where each stack begins in one row of all factors, and how many there are.
std::vector<int64_t> starts_of(const std::vector<StackCall>& calls) {
  std::vector<int64_t> starts{0};
  for (const StackCall& call : calls) starts.push_back(starts.back() + call.k());
  return starts;
}

}  // namespace

std::vector<Leftover> eigh_cusolver(const std::vector<StackCall>& calls, void* current) {
  Solvers* solvers = calls.empty() ? nullptr : solvers_of(calls[0].stack);
  if (!solvers) return without_batch(calls, {});
  std::unique_lock<std::mutex> lock(solvers->mutex);
  const std::vector<Batch> batches = plan(*solvers, calls);
  std::vector<Leftover> leftovers = without_batch(calls, batches);

  // All memory is taken before the fork, and on the host it stays until the streams are done.
  const std::vector<int64_t> starts = starts_of(calls);
  const Tensor failed = torch::stable::new_zeros(calls[0].stack, {starts.back()}, ScalarType::Int);
  const std::vector<Tensor> memory = memory_for(batches, calls[0].stack);
  std::vector<std::vector<char>> host_memory;
  Fork fork(solvers->side, current);
  for (const Batch& batch : batches) {
    const StackCall& call = calls[batch.stack];
    const auto launch_as = call.is_wide() ? launch<double> : launch<float>;
    int32_t* of_batch = failed.mutable_data_ptr<int32_t>() + starts[batch.stack] + batch.first;
    if (!launch_as(*solvers, call, batch, memory[batch.stream], host_memory, of_batch)) {
      leftovers.push_back({batch.stack, batch.first, batch.count, false});
    }
  }
  fork.join();
  lock.unlock();

  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  const Tensor known = torch::stable::to(failed, cpu);  // waits for all
  const int32_t* flags = known.const_data_ptr<int32_t>();
  for (size_t c = 0; c < calls.size(); ++c) {
    for (int64_t i = starts[c]; i < starts[c + 1]; ++i) {
      if (flags[i]) leftovers.push_back({c, i - starts[c], 1, true});
    }
  }
  return leftovers;
}

}  // namespace soap_fast
