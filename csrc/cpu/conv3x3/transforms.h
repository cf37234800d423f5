// The transforms of Winograd's convolution F(4 x 4, 3 x 3) (Lavin and Gray, 2016, section 4), with
// the points 0, +-sqrt(1/2), +-sqrt(2) and infinity: with the usual 0, +-1, +-2 and infinity,
// rounding errors are twice as large.
#pragma once

#include "cpu/common/vector_math.h"

namespace mfk::cpu {
namespace {

constexpr int kKernel = 3, kResult = 4, kInput = 6;
constexpr double kRoot = 1.41421356237309504880;  // of 2

template <class V, class T>
MFK_INLINE V scaled(T factor, const V& a, const V& b) {  // factor * a + b
  return multiply_add(broadcast(factor), a, b);
}

// The values of a polynomial at all points: its first and last coefficients (at 0 and infinity),
// and sums and differences of its even and odd parts at the two pairs of points.
template <class V>
MFK_INLINE void at_points(const V& first, const V& even, const V& odd, const V& even2,
                          const V& odd2, const V& last, V (&y)[kInput]) {
  y[0] = first;
  y[1] = even + odd;
  y[2] = even - odd;
  y[3] = even2 + odd2;
  y[4] = even2 - odd2;
  y[5] = last;
}

// Transforms six pixels for the product with a filter.
template <class T>
struct InputTransform {
  using V = VectorFor<T>;
  static constexpr int kFrom = kInput, kTo = kInput;
  MFK_INLINE static void along_axis(const V (&x)[kFrom], V (&y)[kTo]) {
    const V even = scaled(T(-2), x[2], x[4]), odd = scaled(T(-2), x[1], x[3]);
    const V even2 = scaled(T(-0.5), x[2], x[4]), odd2 = scaled(T(-0.5), x[1], x[3]);
    y[0] = scaled(T(-2.5), x[2], x[0] + x[4]);
    y[1] = scaled(T(kRoot / 2), odd, even);
    y[2] = scaled(T(-kRoot / 2), odd, even);
    y[3] = scaled(T(kRoot), odd2, even2);
    y[4] = scaled(T(-kRoot), odd2, even2);
    y[5] = scaled(T(-2.5), x[3], x[1] + x[5]);
  }
};

template <class T>
struct WeightTransform {
  using V = VectorFor<T>;
  static constexpr int kFrom = kKernel, kTo = kInput;
  MFK_INLINE static void along_axis(const V (&x)[kFrom], V (&y)[kTo]) {
    const V even = scaled(T(0.5), x[2], x[0]) * T(-2.0 / 3), odd = x[1] * T(-kRoot / 3);
    const V even2 = scaled(T(2), x[2], x[0]) * T(1.0 / 6), odd2 = x[1] * T(kRoot / 6);
    at_points(x[0], even, odd, even2, odd2, x[2], y);
  }
};

// Transforms products to four pixels of the result.
template <class T>
struct ResultTransform {
  using V = VectorFor<T>;
  static constexpr int kFrom = kInput, kTo = kResult;
  MFK_INLINE static void along_axis(const V (&x)[kFrom], V (&y)[kTo]) {
    const V even = x[1] + x[2], odd = x[1] - x[2], even2 = x[3] + x[4], odd2 = x[3] - x[4];
    y[0] = x[0] + (even + even2);
    y[1] = scaled(T(2), odd2, odd) * T(kRoot / 2);
    y[2] = scaled(T(0.5), even, even2 * T(2));
    y[3] = scaled(T(kRoot / 4), odd, scaled(T(2 * kRoot), odd2, x[5]));
  }
};

// The transpose of `ResultTransform`: from the gradient of the result to that of the products.
template <class T>
struct GradientTransform {
  using V = VectorFor<T>;
  static constexpr int kFrom = kResult, kTo = kInput;
  MFK_INLINE static void along_axis(const V (&x)[kFrom], V (&y)[kTo]) {
    const V even = scaled(T(0.5), x[2], x[0]), odd = scaled(T(0.5), x[3], x[1]) * T(kRoot / 2);
    const V even2 = scaled(T(2), x[2], x[0]), odd2 = scaled(T(2), x[3], x[1]) * T(kRoot);
    at_points(x[0], even, odd, even2, odd2, x[3], y);
  }
};

// The transpose of `WeightTransform`.
template <class T>
struct WeightGradientTransform {
  using V = VectorFor<T>;
  static constexpr int kFrom = kInput, kTo = kKernel;
  MFK_INLINE static void along_axis(const V (&x)[kFrom], V (&y)[kTo]) {
    const V even = (x[1] + x[2]) * T(-2.0 / 3), even2 = (x[3] + x[4]) * T(1.0 / 6);
    y[0] = x[0] + (even + even2);
    y[1] = (x[2] - x[1]) * T(kRoot / 3) + (x[3] - x[4]) * T(kRoot / 6);
    y[2] = scaled(T(0.5), even, scaled(T(2), even2, x[5]));
  }
};

// Applies a transform along both axes of a tile.
template <class F, class V>
MFK_INLINE void transform(const V (&x)[F::kFrom][F::kFrom], V (&y)[F::kTo][F::kTo]) {
  V half[F::kTo][F::kFrom];
#pragma GCC unroll 6
  for (int i = 0; i < F::kFrom; ++i) {
    V row[F::kTo];
    F::along_axis(x[i], row);
#pragma GCC unroll 6
    for (int j = 0; j < F::kTo; ++j) half[j][i] = row[j];
  }
#pragma GCC unroll 6
  for (int j = 0; j < F::kTo; ++j) {
    V column[F::kTo];
    F::along_axis(half[j], column);
#pragma GCC unroll 6
    for (int i = 0; i < F::kTo; ++i) y[i][j] = column[i];
  }
}

}  // namespace
}  // namespace mfk::cpu
