// Limits of sizes and strides. Sizes come from callers, so that their product may not fit into 64
// bits.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>

namespace mfk {

// The longest side of a mask, an input or a result. Positions are computed in fp32, where larger
// integers are not exact.
constexpr int64_t kMostSide = 1 << 24;
// The most rows or columns of an assignment problem: indices have 32 bits, and rows are padded.
constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max() / 2;
constexpr int64_t kMostProblems = 1 << 26;
// The most channels, and the most masks of an image in all layers: working memory for all of them
// is allocated at once.
constexpr int64_t kMostChannels = 1 << 20;
constexpr int64_t kMostMasks = 1 << 26;

// The product of sizes; if it overflows, the largest number.
inline int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t result = 1;
  bool overflow = false;
  for (const int64_t size : sizes) {
    if (size == 0) return 0;
    overflow = __builtin_mul_overflow(result, size, &result) || overflow;
  }
  return overflow ? std::numeric_limits<int64_t>::max() : result;
}

// Whether a view (such as an expanded one) repeats its memory so often that a copy or a result
// would take far more memory than it has. Strides are in elements.
inline bool is_inflated(int64_t dims, const int64_t* sizes, const int64_t* strides,
                        int64_t item_size) {
  constexpr int64_t kHarmlessBytes = int64_t{1} << 28, kRepeats = 64;
  int64_t elements = 1, reach = 1;
  for (int64_t i = 0; i < dims; ++i) {
    if (sizes[i] == 0) return false;
    elements = product({elements, sizes[i]});
    const int64_t stride = strides[i] < 0 ? -strides[i] : strides[i];
    const int64_t more = product({sizes[i] - 1, stride});
    if (__builtin_add_overflow(reach, more, &reach)) return false;
  }
  return product({elements, item_size}) > kHarmlessBytes && elements / kRepeats > reach;
}

}  // namespace mfk
