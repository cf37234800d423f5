#include "cpu/mask_logits/plan.h"

#include <algorithm>

#include "cpu/common/embeddings.h"
#include "cpu/common/parallel.h"
#include "cpu/mask_logits/kernel.h"

namespace mfk::cpu {
namespace {

// Feature entries of a task: half of a typical L2 cache.
constexpr int64_t kTaskEntries = 1 << 17;

template <class T>
void run(const MaskLogitsProblem& problem, int threads) {
  const MaskLogitsKernel<T>& kernel = MFK_BEST_KERNEL(mask_logits).of<T>();
  const MaskPredictions& predictions = problem.predictions;
  const AllEmbeddings<T> embed(predictions);
  const int64_t entries = predictions.width * std::max<int64_t>(predictions.channels, 1);
  const int64_t rows = std::clamp<int64_t>(kTaskEntries / entries, 1, predictions.height);
  const int64_t tasks = divide_up(predictions.height, rows);  // of an image
  for_each(predictions.images * tasks, threads, kernel.bytes(problem, rows),
           [&](int64_t i, void* memory) {
             const int64_t image = i / tasks, first = i % tasks * rows;
             kernel.run(problem, embed.get(), image, first,
                        std::min(predictions.height, first + rows), memory);
           });
}

}  // namespace

void mask_logits(const MaskLogitsProblem& problem, int threads) {
  problem.is_double ? run<double>(problem, threads) : run<float>(problem, threads);
}

}  // namespace mfk::cpu
