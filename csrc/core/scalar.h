// The 16-bit element types of tensors as plain bits, and conversions between element types.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace mfk {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

MFK_INLINE float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

MFK_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

MFK_INLINE uint64_t bits_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

MFK_INLINE double widen(double value) { return value; }
MFK_INLINE float widen(float value) { return value; }

MFK_INLINE float widen(BFloat16 value) {
  return float_from_bits(static_cast<uint32_t>(value.bits) << 16);
}

MFK_INLINE float widen(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // With its bits shifted to the exponent and mantissa of a float, and 224 more in the exponent,
  // the value is 2^112 times too large, but infinity and NaN are what they are.
  const float scaled = float_from_bits((magnitude << 13) + 0x70000000u);
  const float normal = scaled * float_from_bits(0x07800000u);
  // The bits of a subnormal half are in units of 2^-24, as are the lowest ones of 0.5. No float here
  // is subnormal, because PyTorch's `set_flush_denormal` makes processors read those as 0.
  const float subnormal = float_from_bits(magnitude | 0x3f000000u) - 0.5f;
  return float_from_bits(sign | bits_of(magnitude < 0x400u ? subnormal : normal));
}

// Rounds to nearest, ties to even; NaN stays NaN.
template <class S, class T>
MFK_INLINE S narrow(T value) {
  return static_cast<S>(value);
}

template <>
MFK_INLINE BFloat16 narrow(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
MFK_INLINE Half narrow(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    result = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded value, in units of 2^-24, in the lowest bits.
    result = bits_of(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | result)};
}

template <>
MFK_INLINE BFloat16 narrow(double value) {
  return narrow<BFloat16>(static_cast<float>(value));
}

template <>
MFK_INLINE Half narrow(double value) {
  return narrow<Half>(static_cast<float>(value));
}

MFK_INLINE bool is_finite(float value) { return (bits_of(value) & 0x7f800000u) != 0x7f800000u; }
MFK_INLINE bool is_finite(double value) {
  return (bits_of(value) & 0x7ff0000000000000u) != 0x7ff0000000000000u;
}

// The type that loaded values are converted to: fp64 stays, all others become fp32.
template <class T>
struct Widened {
  using type = float;
};
template <>
struct Widened<double> {
  using type = double;
};

}  // namespace mfk
