// Copies of mask embeddings in the type that kernels compute in.
#pragma once

#include <cstdint>
#include <vector>

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

// The embeddings of all layers and queries, [B, L * Q, C].
template <class T>
std::vector<T> all_embeddings(const MaskPredictions& predictions) {
  const int64_t masks = predictions.layers * predictions.queries;
  std::vector<T> embed(predictions.images * masks * predictions.channels);
  T* row = embed.data();
  for (int64_t image = 0; image < predictions.images; ++image) {
    for (int64_t mask = 0; mask < masks; ++mask, row += predictions.channels) {
      copy_embedding(predictions, mask / predictions.queries, image, mask % predictions.queries,
                     row);
    }
  }
  return embed;
}

}  // namespace
}  // namespace mfk::cpu
