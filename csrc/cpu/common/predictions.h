// What operations on masks take: predictions in factors or as logits, and the segments of a batch.
#pragma once

#include <cstdint>

#include "core/element.h"

namespace mfk::cpu {

struct Masks {
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

// Memory handed out piece by piece, each aligned to 64 bytes. From null it only counts.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    char* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }

  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace mfk::cpu
