// The element types that tensors of floating point may have.
#pragma once

#include <cstdint>

namespace mfk {

enum class Element : int32_t { kHalf, kBFloat16, kFloat, kDouble };

}  // namespace mfk
