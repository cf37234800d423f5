// Runs work on several threads: on a pool passed to `lend_threads`, otherwise on a pool of its own.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "cpu/common/memory.h"

namespace mfk::cpu {

// Calls `work` at most `threads` times, on this thread and on others as far as they are available:
// concurrently, or one after the other if the pool is busy. Returns when all calls have returned.
// `work` must take its tasks from a shared counter, so that the result does not depend on the
// number of calls. An exception that it throws (out of memory) is rethrown here after all calls
// have returned.
void run_parallel(int threads, const std::function<void()>& work);

// Calls `work` on this thread and up to `threads` - 1 others.
using Threads = void (*)(int threads, const std::function<void()>& work);

// Sets the pool for all work from now on, except in forked children, which may not have its
// threads. Sharing PyTorch's pool matters because OpenMP threads keep spinning on their cores for a
// while after their work: two pools used alternately, by PyTorch's operators and by these, would
// slow each other down.
void lend_threads(Threads threads);

// Calls f(i) for 0 <= i < count, in any order.
template <class F>
void for_each(int64_t count, int threads, const F& f) {
  std::atomic<int64_t> next{0};
  run_parallel(static_cast<int>(std::min<int64_t>(threads, count)), [&] {
    for (int64_t i = next++; i < count; i = next++) f(i);
  });
}

// A number of this thread, in the order of the first calls.
inline int64_t thread_number() {
  static std::atomic<int64_t> threads{0};
  thread_local const int64_t number = threads++;
  return number;
}

// The same for repeated calls over the same memory: as far as possible, a thread gets the part of
// the range that it got before, whose memory may still be in its cache and not in that of others.
template <class F>
void for_each_with_affinity(int64_t count, int threads, const F& f) {
  const int64_t workers = std::min<int64_t>(threads, count);
  if (workers == 0) return;
  const std::unique_ptr<std::atomic<bool>[]> taken(new std::atomic<bool>[count]());
  run_parallel(static_cast<int>(workers), [&] {
    const int64_t first = thread_number() % workers * count / workers;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t i = (first + k) % count;
      if (!taken[i].load(std::memory_order_relaxed) && !taken[i].exchange(true)) f(i);
    }
  });
}

// The same as `for_each` with f(i, memory), where `memory` points to `bytes` of working memory of
// the thread.
template <class F>
void for_each(int64_t count, int threads, int64_t bytes, const F& f) {
  const int workers = static_cast<int>(std::min<int64_t>(threads, count));
  if (workers == 0) return;
  // Allocate all memory before the threads start, so that they cannot fail.
  const int64_t bytes_per_worker = round_up(bytes, kAlignment);
  const Block memory = allocate(bytes_per_worker * workers);
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> next_worker{0};
  run_parallel(workers, [&] {
    char* mine = static_cast<char*>(memory.get()) + bytes_per_worker * next_worker++;
    for (int64_t i = next++; i < count; i = next++) f(i, mine);
  });
}

}  // namespace mfk::cpu
