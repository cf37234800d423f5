// The floating-point element types of tensors.
#pragma once

#include <cstdint>

namespace mfk {

enum class Element : int32_t { kHalf, kBFloat16, kFloat, kDouble };

}  // namespace mfk
