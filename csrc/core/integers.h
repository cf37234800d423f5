// Integer functions. Those of the standard library, such as std::min, are inline functions of which
// the linker would keep one copy for all instruction sets.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace mfk {

MFK_INLINE constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
MFK_INLINE constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// The number of steps that cover a length, and their total length.
MFK_INLINE constexpr int64_t divide_up(int64_t length, int64_t step) {
  return (length + step - 1) / step;
}
MFK_INLINE constexpr int64_t round_up(int64_t length, int64_t step) {
  return divide_up(length, step) * step;
}

}  // namespace mfk
