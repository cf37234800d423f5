// The inputs of operations on masks: predictions, factored or as logits, and the segments of a
// batch.
#pragma once

#include <cstdint>

#include "core/element.h"

namespace mfk::cpu {

// Strides in elements; embeddings have a channel stride, logits have row and column strides.
struct EmbedStride {
  int64_t layer, image, query, channel, row, column;
};

struct FeatureStride {
  int64_t image, channel, row, column;
};

struct MaskPredictions {
  const void* embed;  // [L, B, Q, C], or logits [L, B, Q, h, w] if there are no features
  Element embed_element;
  EmbedStride embed_stride;
  const void* features;  // [B, C, h, w], or null
  Element features_element;
  FeatureStride features_stride;
  int64_t layers, images, queries, channels, height, width;
};

struct Segments {
  const int16_t* label_map;  // [B, H, W], or null
  const uint8_t* masks;      // [N, H, W], or null
  const int64_t* counts;     // [B]
  int64_t max_count;         // T
  int64_t height, width;
};

}  // namespace mfk::cpu
