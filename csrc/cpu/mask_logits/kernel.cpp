// Some rows of an image on one thread. The build compiles this file once for each instruction set,
// with MFK_KERNEL as the name of its one public object.
#include "cpu/mask_logits/kernel.h"

#include "cpu/common/pixels.h"

namespace mfk::cpu {
namespace {

template <class T>
struct Workspace {
  Arena arena;
  T *features, *tile;

  Workspace(const MaskLogits& task, int64_t rows, void* memory) : arena(memory) {
    const int64_t pixels = round_up(rows * task.masks.width, kPanel<T>);
    features = arena.take<T>(pixels * task.masks.channels);
    tile = arena.take<T>(kTileRows * pixels);
  }
};

template <class T>
void run(const MaskLogits& task, const T* embed, int64_t image, int64_t first, int64_t last,
         void* memory) {
  const Masks& masks = task.masks;
  const Workspace<T> workspace(task, last - first, memory);
  const int64_t pixels = (last - first) * masks.width, channels = masks.channels;
  const int64_t stride = round_up(pixels, kPanel<T>);
  pack_rows(masks, image, first, last, workspace.features);
  const int64_t rows = masks.layers * masks.queries;
  for (int64_t block = 0; block < rows; block += kTileRows) {
    const int64_t count = rows - block < kTileRows ? rows - block : kTileRows;
    for (int64_t p = 0; p < pixels; p += kPanel<T>) {
      multiply<false, T>(count, {embed + block * channels, channels, 1},
                         workspace.features + p * channels, channels, workspace.tile + p, stride);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t layer = (block + i) / masks.queries, query = (block + i) % masks.queries;
      const int64_t mask = (layer * masks.images + image) * masks.queries + query;
      store_run(task.element, task.logits, (mask * masks.height + first) * masks.width, pixels,
                workspace.tile + i * stride);
    }
  }
}

template <class T>
constexpr MaskLogitsTasks<T> tasks() {
  return {[](const MaskLogits& task, int64_t rows) {
            return Workspace<T>(task, rows, nullptr).arena.used();
          },
          run<T>};
}

}  // namespace

extern const MaskLogitsKernel MFK_KERNEL;
const MaskLogitsKernel MFK_KERNEL = {tasks<float>(), tasks<double>()};

}  // namespace mfk::cpu
