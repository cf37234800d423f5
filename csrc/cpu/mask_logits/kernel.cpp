// Computes a few rows of an image on one thread. The build compiles this file once for each
// instruction set, with MFK_KERNEL as the name of its only public object.
#include "cpu/mask_logits/kernel.h"

#include "cpu/common/memory.h"
#include "cpu/common/pixels.h"

namespace mfk::cpu {
namespace {

template <class T, class E>
struct Workspace {
  Arena arena;
  E* features;
  T* tile;

  Workspace(const MaskLogitsProblem& problem, int64_t rows, void* memory) : arena(memory) {
    const int64_t pixels = round_up(rows * problem.predictions.width, kPanel<T>);
    features = arena.take<E>(pixels * depth_of<E>(problem.predictions.channels));
    tile = arena.take<T>(kTileRows * pixels);
  }
};

template <class T, class E>
void run(const MaskLogitsProblem& problem, const E* embed, int64_t image, int64_t first,
         int64_t last, void* memory) {
  const MaskPredictions& predictions = problem.predictions;
  const Workspace<T, E> workspace(problem, last - first, memory);
  const int64_t pixels = (last - first) * predictions.width;
  const int64_t depth = depth_of<E>(predictions.channels);
  const int64_t stride = round_up(pixels, kPanel<T>);
  pack_rows(predictions, image, first, last, workspace.features);
  const int64_t rows = predictions.layers * predictions.queries;
  embed += image * rows * depth;
  for (int64_t block = 0; block < rows; block += kTileRows) {
    const int64_t count = smaller(kTileRows, rows - block);
    for (int64_t p = 0; p < pixels; p += kPanel<T>) {
      multiply<false>(count, Left<E>{embed + block * depth, depth, 1},
                      workspace.features + p * depth, depth, workspace.tile + p, stride);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t layer = (block + i) / predictions.queries,
                    query = (block + i) % predictions.queries;
      const int64_t mask = (layer * predictions.images + image) * predictions.queries + query;
      store_run(problem.element, problem.logits,
                (mask * predictions.height + first) * predictions.width, pixels,
                workspace.tile + i * stride);
    }
  }
}

template <class T>
constexpr MaskLogitsKernel<T> kernel() {
  return {
      // Pairs need no more.
      [](const MaskLogitsProblem& problem, int64_t rows) {
        return Workspace<T, T>(problem, rows, nullptr).arena.used();
      },
      [](const MaskLogitsProblem& problem, const Embeddings<T>& embed, int64_t image, int64_t first,
         int64_t last, void* memory) {
        with_embeddings(embed, [&](const auto* entries) {
          run<T>(problem, entries, image, first, last, memory);
        });
      },
  };
}

}  // namespace

extern const PerType<MaskLogitsKernel> MFK_KERNEL;
const PerType<MaskLogitsKernel> MFK_KERNEL = {kernel<float>(), kernel<double>()};

}  // namespace mfk::cpu
