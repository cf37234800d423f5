// Bilinear sampling of images at points, and its adjoint.
#pragma once

#include <type_traits>

#include "cpu/common/pixels.h"

namespace mfk::cpu {
namespace {

// Points that are processed at a time.
constexpr int64_t kPoints = 512;

// The four pixels around each point, and their weights, which are 0 outside the image.
template <class T>
struct Corners {
  using V = VectorFor<T>;
  using Index = IndexFor<T>;
  using I = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  static constexpr int kWidth = VectorOf<T>::kWidth;

  I offset[4][kPoints];
  T weight[4][kPoints];

  Corners(const T* points, int64_t count, int64_t height, int64_t width) {
    alignas(64) T coordinates[2][kPoints];
    for (int64_t i = 0; i < count; ++i) {
      coordinates[0][i] = points[2 * i];
      coordinates[1][i] = points[2 * i + 1];
    }
    for (int64_t i = count; i < round_up(count, kWidth); ++i) {
      coordinates[0][i] = coordinates[1][i] = 0;
    }
    for (int64_t i = 0; i < count; i += kWidth) {
      const Axis x(load<V>(coordinates[0] + i), width), y(load<V>(coordinates[1] + i), height);
      for (int corner = 0; corner < 4; ++corner) {
        const int right = corner % 2, bottom = corner / 2;
        store(offset[corner] + i, y.source[bottom] * static_cast<I>(width) + x.source[right]);
        store(weight[corner] + i, y.weight[bottom] * x.weight[right]);
      }
    }
  }

 private:
  // The two source pixels of coordinates along one axis.
  struct Axis {
    Index source[2];
    V weight[2];

    MFK_INLINE Axis(const V& coordinate, int64_t size) {
      const V wanted = coordinate * static_cast<T>(size) - T(0.5);
      const Index inside = (wanted > T(-1)) & (wanted < static_cast<T>(size));
      const V position = inside ? wanted : V{};
      const Index low = __builtin_convertvector(position + 1, Index) - 1;
      const V beyond = position - __builtin_convertvector(low, V);
      const I last = static_cast<I>(size) - 1;
      const Index first = (low >= 0) & (low <= last), second = low < last;
      source[0] = low & first;
      source[1] = second ? low + 1 : Index{} + last;
      weight[0] = (inside & first) ? 1 - beyond : V{};
      weight[1] = (inside & second) ? beyond : V{};
      for (V& w : weight) w = wanted == wanted ? w : wanted;  // NaN stays NaN
    }
  };
};

using mfk::widen;

struct Bool {
  uint8_t byte;
};
// Without a branch, which the processor would mispredict at random points.
MFK_INLINE float widen(Bool value) {
  return float_from_bits(0x3f800000u & -static_cast<uint32_t>(value.byte != 0));
}

// Calls f with the values as an array of their type.
template <class F>
MFK_INLINE void with_values(const void* values, bool are_bool, Element element, F f) {
  if (are_bool) return f(static_cast<const Bool*>(values));
  with_element(element, [&](auto kind) { f(static_cast<const decltype(kind)*>(values)); });
}

// Samples an image [height, width] bilinearly at up to kPoints points, with zeros outside. A point
// is x and y, where 0 and 1 are opposite edges of the image.
template <class T, class S>
void sample(const S* image, const T* points, int64_t count, int64_t height, int64_t width,
            T* result) {
  const Corners<T> corners(points, count, height, width);
  // Successive points are far apart in memory: prefetch all pixels before the first one is needed.
  for (int64_t i = 0; i < count; ++i) {
    __builtin_prefetch(image + corners.offset[0][i]);
    __builtin_prefetch(image + corners.offset[2][i]);
  }
  for (int64_t i = 0; i < count; ++i) {
    T sum = 0;
    for (int k = 0; k < 4; ++k) {
      const T weight = corners.weight[k][i];
      const T part = weight * static_cast<T>(widen(image[corners.offset[k][i]]));
      // Outside the image, another pixel is read, which may not be finite.
      sum += !std::is_same_v<S, Bool> && weight == 0 ? T{0} : part;
    }
    result[i] = sum;
  }
}

// The adjoint of `sample`: adds values at points to an image.
template <class T>
void scatter(const T* values, const T* points, int64_t count, int64_t height, int64_t width,
             T* image) {
  const Corners<T> corners(points, count, height, width);
  for (int64_t i = 0; i < count; ++i) {
    for (int k = 0; k < 4; ++k) {
      const T weight = corners.weight[k][i];
      // Outside the image, or at a NaN point, the offset is that of another pixel.
      image[corners.offset[k][i]] += weight > 0 ? weight * values[i] : T{0};
    }
  }
}

}  // namespace
}  // namespace mfk::cpu
