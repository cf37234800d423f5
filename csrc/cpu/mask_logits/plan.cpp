#include "cpu/mask_logits/plan.h"

#include <algorithm>
#include <vector>

#include "cpu/common/parallel.h"
#include "cpu/common/pixels.h"
#include "cpu/mask_logits/kernel.h"

namespace mfk::cpu {
namespace {

// Feature entries of a task: half of a usual second-level cache.
constexpr int64_t kTaskEntries = 1 << 17;

template <class T>
std::vector<T> embeddings_of(const Masks& masks) {
  std::vector<T> embed(masks.images * masks.layers * masks.queries * masks.channels);
  T* row = embed.data();
  with_element(masks.embed_element, [&](auto kind) {
    for (int64_t b = 0; b < masks.images; ++b) {
      for (int64_t l = 0; l < masks.layers; ++l) {
        for (int64_t q = 0; q < masks.queries; ++q, row += masks.channels) {
          const auto* source = static_cast<const decltype(kind)*>(masks.embed) +
                               l * masks.embed_stride[0] + b * masks.embed_stride[1] +
                               q * masks.embed_stride[2];
          copy_strided(source, masks.embed_stride[3], masks.channels, row);
        }
      }
    }
  });
  return embed;
}

template <class T>
void run(const MaskLogits& task, const MaskLogitsTasks<T>& tasks, int threads) {
  const Masks& masks = task.masks;
  const std::vector<T> embed = embeddings_of<T>(masks);
  const int64_t entries = masks.width * std::max<int64_t>(masks.channels, 1);
  const int64_t rows = std::clamp<int64_t>(kTaskEntries / entries, 1, masks.height);
  const int64_t each = (masks.height + rows - 1) / rows;
  const int64_t of_image = masks.layers * masks.queries * masks.channels;
  for_each(masks.images * each, threads, tasks.bytes(task, rows), [&](int64_t i, void* memory) {
    const int64_t image = i / each, first = i % each * rows;
    tasks.run(task, embed.data() + image * of_image, image, first,
              std::min(masks.height, first + rows), memory);
  });
}

}  // namespace

void mask_logits(const MaskLogits& task, int threads) {
  const MaskLogitsKernel& kernel = MFK_BEST_KERNEL(mask_logits);
  task.wide ? run(task, kernel.wide, threads) : run(task, kernel.narrow, threads);
}

}  // namespace mfk::cpu
