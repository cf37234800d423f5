// The source pixels of a resized image, as in torch.nn.functional.interpolate.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace mfk {

// Bilinear, align_corners=False: (1 - weight) * x[low] + weight * x[high].
template <class T>
struct Tap {
  int64_t low, high;
  T weight;
};

// The tap of a pixel with the source coordinate `source`.
template <class T>
MFK_INLINE Tap<T> tap_at(T source, int64_t size) {
  const T inside = source < 0 ? 0 : source;
  int64_t low = static_cast<int64_t>(inside);
  if (low > size - 1) low = size - 1;
  const int64_t high = low + 1 < size ? low + 1 : low;
  const T weight = inside - static_cast<T>(low);
  return {low, high, weight > 1 ? 1 : weight};
}

MFK_INLINE Tap<double> bilinear_tap(int64_t index, int64_t size, int64_t new_size) {
  const double scale = static_cast<double>(size) / static_cast<double>(new_size);
  return tap_at(scale * (static_cast<double>(index) + 0.5) - 0.5, size);
}

// The same in the type of the result and rounded once, as PyTorch computes it: in fp32, this
// affects the fourth digit of weights in a large image.
template <class T>
MFK_INLINE Tap<T> bilinear_tap_rounded(int64_t index, int64_t size, int64_t new_size) {
  const T scale = static_cast<T>(size) / static_cast<T>(new_size), half = static_cast<T>(0.5);
  return tap_at(std::fma(scale, static_cast<T>(index) + half, -half), size);
}

// Nearest neighbour; the scale is computed in fp32, whose rounding decides which pixel is taken.
MFK_INLINE int64_t nearest_source(int64_t index, int64_t size, int64_t new_size) {
  const float scale = static_cast<float>(size) / static_cast<float>(new_size);
  const int64_t source = static_cast<int64_t>(static_cast<float>(index) * scale);
  return source < size ? source : size - 1;
}

}  // namespace mfk
