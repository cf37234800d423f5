// What operations on masks take: predictions in factors or as logits, and the segments of a batch.
#pragma once

#include <cstdint>

#include "core/element.h"

namespace mfk::cpu {

struct MaskPredictions {
  const void* embed;  // [L, B, Q, C], or logits [L, B, Q, h, w] where there are no features
  Element embed_element;
  int64_t embed_stride[5];  // in elements, the last one unused with features
  const void* features;     // [B, C, h, w], or null
  Element features_element;
  int64_t features_stride[4];
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
