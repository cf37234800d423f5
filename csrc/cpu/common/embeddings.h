// Copies of mask embeddings in the type that kernels compute in.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/common/instruction_set.h"
#include "cpu/common/pairs.h"
#include "cpu/common/pixels.h"
#include "cpu/common/predictions.h"

namespace mfk::cpu {
namespace {

template <class T>
void copy_embedding(const MaskPredictions& predictions, int64_t layer, int64_t image, int64_t query,
                    T* result) {
  const EmbedStride& stride = predictions.embed_stride;
  with_element(predictions.embed_element, [&](auto kind) {
    const auto* source = static_cast<const decltype(kind)*>(predictions.embed) +
                         layer * stride.layer + image * stride.image + query * stride.query;
    copy_strided(source, stride.channel, predictions.channels, result);
  });
}

inline void copy_embedding(const MaskPredictions& predictions, int64_t layer, int64_t image,
                           int64_t query, BFloat16Pair* result) {
  const EmbedStride& stride = predictions.embed_stride;
  const auto* source = static_cast<const BFloat16*>(predictions.embed) + layer * stride.layer +
                       image * stride.image + query * stride.query;
  for (int64_t c = 0; c < predictions.channels; ++c) {
    result[c / 2].entries[c % 2] = source[c * stride.channel];
  }
}

// Owns a copy of the embeddings of all layers and queries, in pairs if both factors are bfloat16
// and the processor can multiply them.
template <class T>
class AllEmbeddings {
 public:
  explicit AllEmbeddings(const MaskPredictions& predictions) {
    if (std::is_same_v<T, float> && instruction_set() == InstructionSet::kAvx512Bf16 &&
        predictions.embed_element == Element::kBFloat16 &&
        predictions.features_element == Element::kBFloat16) {
      copy(predictions, pairs_);
    } else {
      copy(predictions, entries_);
    }
  }

  Embeddings<T> get() const {
    return {.entries = pairs_.empty() ? entries_.data() : nullptr,
            .pairs = pairs_.empty() ? nullptr : pairs_.data()};
  }

 private:
  template <class E>
  static void copy(const MaskPredictions& predictions, std::vector<E>& result) {
    const int64_t masks = predictions.layers * predictions.queries;
    const int64_t depth = depth_of<E>(predictions.channels);
    result.resize(predictions.images * masks * depth);
    E* row = result.data();
    for (int64_t image = 0; image < predictions.images; ++image) {
      for (int64_t mask = 0; mask < masks; ++mask, row += depth) {
        copy_embedding(predictions, mask / predictions.queries, image, mask % predictions.queries,
                       row);
      }
    }
  }

  std::vector<T> entries_;
  std::vector<BFloat16Pair> pairs_;
};

}  // namespace
}  // namespace mfk::cpu
