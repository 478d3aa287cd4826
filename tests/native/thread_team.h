// A team of real threads, to find on a host what a lone thread cannot show: a missing sync().
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

class ThreadTeam {
 public:
  static constexpr int kLeastSize = 1;

  struct Shared {
    explicit Shared(int size) : size(size), posted(size * kMostReductions) {
      for (auto& slot : posted) slot = kNothing;
      if (size > kWarp) first_warp = std::make_unique<Shared>(kWarp);
    }
    const int size;
    std::vector<std::atomic<uint64_t>> posted;  // [kMostReductions, size], a double's bits each
    std::mutex mutex;
    std::condition_variable everyone;
    int waiting = 0;
    long generation = 0;
    std::unique_ptr<Shared> first_warp;  // of a team that is larger than one
  };

  ThreadTeam(Shared& shared, int rank) : shared_(&shared), rank_(rank) {}
  int rank() const { return rank_; }
  int size() const { return shared_->size; }

  void sync() const {
    std::unique_lock<std::mutex> lock(shared_->mutex);
    const long mine = shared_->generation;
    if (++shared_->waiting == shared_->size) {
      shared_->waiting = 0;
      ++shared_->generation;
      shared_->everyone.notify_all();
    } else {
      shared_->everyone.wait(lock, [&] { return shared_->generation != mine; });
    }
  }

  template <typename Work>
  void by_first_warp(const Work& work) const {
    if (size() <= kWarp) return work(*this);
    if (rank_ < kWarp) work(ThreadTeam(*shared_->first_warp, rank_));
  }

  template <typename T>
  T sum(T x) const {
    return reduce(x, [](T a, T b) { return a + b; });
  }
  template <typename T>
  T max(T x) const {
    return reduce(x, [](T a, T b) { return b > a ? b : a; });
  }

  // Calls work(team) on `size` threads.
  template <typename Work>
  static void run(int size, const Work& work) {
    Shared shared(size);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&shared, &work, rank] { work(ThreadTeam(shared, rank)); });
    }
    for (std::thread& thread : threads) thread.join();
  }

 private:
  static constexpr int kWarp = 2;
  static constexpr size_t kMostReductions = 1024;
  static constexpr uint64_t kNothing = ~uint64_t(0);  // a NaN that no computation makes

  // As with a warp's shuffles, no thread may rely on what others wrote before they came here: the
  // numbers themselves are handed over without any order to other memory.
  template <typename T, typename Join>
  T reduce(T x, Join join) const {
    const double mine = x;
    uint64_t bits;
    std::memcpy(&bits, &mine, sizeof bits);
    auto* slots = &shared_->posted.at(reductions_++ * size());
    slots[rank_].store(bits, std::memory_order_relaxed);
    T joined{};
    for (int r = 0; r < size(); ++r) {
      while ((bits = slots[r].load(std::memory_order_relaxed)) == kNothing) {
        std::this_thread::yield();
      }
      double theirs;
      std::memcpy(&theirs, &bits, sizeof theirs);
      joined = r == 0 ? T(theirs) : join(joined, T(theirs));
    }
    return joined;
  }

  Shared* shared_;
  int rank_;
  mutable size_t reductions_ = 0;
};
