// Maps [B, h, w, C] of convolutions and norms.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/element.h"
#include "core/scalar.h"

namespace mfk::cpu {

// The numbers of channels must be multiples of this.
constexpr int64_t kMapChannels = 16;

namespace {

// Calls `f` with an object of the element type of maps, which may be narrower than the type T of
// the computation.
template <class T, class F>
MFK_INLINE void with_map_element(Element element, F f) {
  if constexpr (std::is_same_v<T, float>) {
    if (element == Element::kBFloat16) return f(BFloat16{});
  }
  f(T{});
}

}  // namespace
}  // namespace mfk::cpu
