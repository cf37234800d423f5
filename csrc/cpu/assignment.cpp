#include "cpu/assignment.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "cpu/assignment_kernel.h"
#include "cpu/instruction_set.h"
#include "cpu/parallel.h"

namespace mfk::cpu {
namespace {

const AssignmentKernel& kernel() {
#ifdef MFK_X86_VARIANTS
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return assignment_avx512;
    case InstructionSet::kAvx2:
      return assignment_avx2;
    case InstructionSet::kBaseline:
      break;
  }
#endif
  return assignment_baseline;
}

struct AlignedDelete {
  void operator()(void* block) const { ::operator delete(block, std::align_val_t{64}); }
};

using Block = std::unique_ptr<void, AlignedDelete>;

Block allocate(int64_t bytes) {
  return Block(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64}));
}

// Below this many matrix entries a thread costs more to wake than it helps.
constexpr int64_t kEntriesPerThread = 16 * 1024;

}  // namespace

void solve_assignments(const AssignmentBatch& batch, int threads) {
  const AssignmentKernel& chosen = kernel();
  const int64_t bytes = chosen.workspace(batch);
  const int64_t worth = batch.batch * batch.rows * batch.columns / kEntriesPerThread;
  const int64_t useful = std::min<int64_t>({threads, batch.batch, worth});
  if (useful <= 1) {
    const Block workspace = allocate(bytes);
    for (int64_t b = 0; b < batch.batch; ++b) chosen.solve(batch, b, workspace.get());
    return;
  }
  // All the memory is here before the threads start, so they cannot fail.
  const int64_t stride = (bytes + 63) / 64 * 64;
  const Block workspace = allocate(stride * useful);
  std::atomic<int64_t> next_problem{0};
  std::atomic<int64_t> next_workspace{0};
  run_parallel(static_cast<int>(useful), [&] {
    char* mine = static_cast<char*>(workspace.get()) + stride * next_workspace++;
    for (int64_t b = next_problem++; b < batch.batch; b = next_problem++) {
      chosen.solve(batch, b, mine);
    }
  });
}

}  // namespace mfk::cpu
