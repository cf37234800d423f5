#include "cpu/assignment/plan.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "cpu/assignment/kernel.h"
#include "cpu/common/memory.h"
#include "cpu/common/parallel.h"

namespace mfk::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// Waking a thread takes about 50 microseconds, and longer if all cores are busy. So work starts on
// this thread; others are woken after this much time if at least as much work is estimated to
// remain,
constexpr std::chrono::microseconds kWorthThreads{100};
// or at once if there are so many matrix entries that it clearly pays.
constexpr int64_t kManyEntries = 1 << 20;

}  // namespace

void solve_assignments(const assignment::Batch& batch, int threads) {
  const AssignmentKernel& chosen = MFK_BEST_KERNEL(assignment);
  const AssignmentSolver solve = chosen.solver(batch);
  const int64_t bytes = round_up(chosen.workspace(batch), kAlignment);
  int64_t first = 0;
  if (threads <= 1 || batch.batch * batch.rows * batch.columns < kManyEntries) {
    const Block workspace = allocate(bytes);
    const Clock::time_point start = Clock::now();
    while (first < batch.batch) {
      solve(batch, first++, workspace.get());
      if (threads <= 1) continue;
      const Clock::duration spent = Clock::now() - start;
      if (spent >= kWorthThreads && spent / first * (batch.batch - first) >= kWorthThreads) break;
    }
  }
  const int64_t useful = std::min<int64_t>(threads, batch.batch - first);
  if (useful <= 0) return;
  // Allocate all memory before the threads start, so that they cannot fail.
  const Block workspace = allocate(bytes * useful);
  std::atomic<int64_t> next_problem{first};
  std::atomic<int64_t> next_workspace{0};
  run_parallel(static_cast<int>(useful), [&] {
    char* mine = static_cast<char*>(workspace.get()) + bytes * next_workspace++;
    for (int64_t b = next_problem++; b < batch.batch; b = next_problem++) {
      solve(batch, b, mine);
    }
  });
}

}  // namespace mfk::cpu
