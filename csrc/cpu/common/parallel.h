// Run work on several threads: those lent by `lend_threads`, else some that sleep while there is none.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

#include "cpu/common/memory.h"

namespace mfk::cpu {

// Call `work` at most `threads` times, on this thread and on others as far as there are any: at once,
// or, in threads that are lent and busy already, one after the other. Returns when all calls have
// returned. `work` takes its share of the whole from a counter of its own, so it is right whatever the
// number of calls. What it throws (memory may end) comes out here once all calls have returned.
void run_parallel(int threads, const std::function<void()>& work);

// Calls `work` on this thread and up to `threads` - 1 others.
using Threads = void (*)(int threads, const std::function<void()>& work);

// Threads for all work from now on but that of forked children, in which they may be gone. Two pools
// that take turns, as operators of PyTorch and these here do, would wait for each other: threads of
// OpenMP keep their processors for a while.
void lend_threads(Threads threads);

// Call f(i) for 0 <= i < count, in any order.
template <class F>
void for_each(int64_t count, int threads, const F& f) {
  std::atomic<int64_t> next{0};
  run_parallel(static_cast<int>(std::min<int64_t>(threads, count)), [&] {
    for (int64_t i = next++; i < count; i = next++) f(i);
  });
}

// The same with f(i, memory): `bytes` of working memory, which one call at a time uses.
template <class F>
void for_each(int64_t count, int threads, int64_t bytes, const F& f) {
  const int workers = static_cast<int>(std::min<int64_t>(threads, count));
  if (workers == 0) return;
  // All the memory is here before the threads start, so they cannot fail.
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
