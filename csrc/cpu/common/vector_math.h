// The exponential, the sigmoid, and the terms of the focal and dice losses, on vectors.
#pragma once

#include <cmath>

#include "cpu/common/vector.h"

namespace mfk::cpu {

using Floats = VectorOf<float>::type;
using Ints = VectorOf<float>::index;
using Bits = uint32_t __attribute__((vector_size(MFK_VECTOR_BYTES)));

template <class T>
using VectorFor = typename VectorOf<T>::type;
template <class T>
using IndexFor = typename VectorOf<T>::index;

// a * b + c, rounded once if the processor has FMA (-ffp-contract=off keeps compilers from using
// it).
MFK_INLINE Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

MFK_INLINE Doubles multiply_add(const Doubles& a, const Doubles& b, const Doubles& c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

template <class T>
MFK_INLINE VectorFor<T> broadcast(T value) {
  return VectorFor<T>{} + value;
}

template <class T>
MFK_INLINE double sum_of(const VectorFor<T>& values) {
  double sum = 0;
  for (int k = 0; k < VectorOf<T>::kWidth; ++k) sum += static_cast<double>(values[k]);
  return sum;
}

MFK_INLINE Floats magnitude(const Floats& x) {
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) & 0x7fffffff);
}
MFK_INLINE Doubles magnitude(const Doubles& x) {
  return reinterpret_cast<Doubles>(reinterpret_cast<Longs>(x) & 0x7fffffffffffffff);
}

template <class V>
MFK_INLINE V horner(const V&, const V& sum) {
  return sum;
}
template <class V, class... Rest>
MFK_INLINE V horner(const V& x, const V& sum, float next, Rest... rest) {
  return horner(x, multiply_add(sum, x, V{} + next), rest...);
}

// e^x for x <= 0, within 1 ulp; 0 below -87. NaN stays NaN.
MFK_INLINE Floats exp_negative(const Floats& x) {
  // Adding 1.5 * 2^23 puts the nearest integer into the lowest bits.
  const Floats shifted = multiply_add(x, broadcast(1.44269504f), broadcast(12582912.0f));
  const Floats n = shifted - 12582912.0f;
  Floats r = multiply_add(n, broadcast(-0.693145752f), x);
  r = multiply_add(n, broadcast(-1.42860677e-6f), r);
  const Floats mantissa = horner(r, broadcast(1.38368516e-3f), 8.37481581e-3f, 4.16682251e-2f,
                                 1.66664198e-1f, 4.99999911e-1f, 1.0f, 1.0f);
  // Add n to the exponent.
  const Bits bits = reinterpret_cast<Bits>(mantissa) + (reinterpret_cast<Bits>(shifted) << 23);
  // Not `bits`, which may be those of a number for a NaN.
  const Floats beyond = x < -87.0f ? Floats{} : x;
  return x >= -87.0f ? reinterpret_cast<Floats>(bits) : beyond;
}

MFK_INLINE Doubles exp_negative(const Doubles& x) {
  Doubles result{};
  for (int k = 0; k < VectorOf<double>::kWidth; ++k) result[k] = std::exp(x[k]);
  return result;
}

// log(1 + e) for 0 <= e <= 1, with a relative error of about 1e-7. The polynomial is log(1 + e) /
// e.
MFK_INLINE Floats log1p_unit(const Floats& e) {
  return e * horner(e, broadcast(-3.24402587e-3f), 1.98514648e-2f, -5.69595397e-2f, 1.06036551e-1f,
                    -1.53055936e-1f, 1.96759388e-1f, -2.49541342e-1f, 3.33299637e-1f,
                    -4.99999017e-1f, 1.0f);
}

MFK_INLINE Doubles log1p_unit(const Doubles& e) {
  Doubles result{};
  for (int k = 0; k < VectorOf<double>::kWidth; ++k) result[k] = std::log1p(e[k]);
  return result;
}

// The terms of the focal and dice loss: p = sigmoid(z), q = 1 - p, and the cross-entropies
// up = log(1 + e^z) (target 0) and down = log(1 + e^-z) (target 1). For an infinite z, the smaller
// one is NaN, so that a cross-entropy, which is a weighted sum of both, is NaN, as in PyTorch.
template <class V>
struct Sigmoid {
  V p, q, up, down;
};

template <class V>
MFK_INLINE Sigmoid<V> sigmoid(const V& z) {
  const V size = magnitude(z), half = V{} + 0.5f;
  const V e = exp_negative(-size);
  const V large = 1 / (1 + e);
  const V small = e * large;
  const V log = log1p_unit(e), half_z = half * z;  // |z| + z may be too large for a float
  return {z > 0 ? large : small, z > 0 ? small : large, multiply_add(half, size, half_z) + log,
          multiply_add(half, size, -half_z) + log};
}

// The modulating factor p^gamma, from log(p) = -down. `kGamma` is 0, 1 or 2, or -1 for any `gamma`.
template <int kGamma, class V, class T>
MFK_INLINE V focal_power(const Sigmoid<V>& s, T gamma) {
  if constexpr (kGamma == 0) return V{} + 1;
  if constexpr (kGamma == 1) return s.p;
  if constexpr (kGamma == 2) return s.p * s.p;
  return exp_negative(-gamma * s.down);
}

// The focal loss, without alpha, of a negative with logit z; for a positive with logit x, z = -x.
template <int kGamma, class V, class T>
MFK_INLINE V focal(const Sigmoid<V>& s, T gamma) {
  return focal_power<kGamma>(s, gamma) * s.up;
}

// Its derivative with respect to z, in a form that is valid for gamma = 0 too.
template <int kGamma, class V, class T>
MFK_INLINE V focal_gradient(const Sigmoid<V>& s, T gamma) {
  if constexpr (kGamma == 0) return s.p;
  return focal_power<kGamma>(s, gamma) * multiply_add(gamma * s.q, s.up, s.p);
}

// Calls f with the exponent as a compile-time constant if it is a common one.
template <int kValue>
struct Gamma {
  static constexpr int value = kValue;
};
template <class F>
MFK_INLINE void with_gamma(double gamma, F f) {
  if (gamma == 2) {
    f(Gamma<2>{});
  } else if (gamma == 0) {
    f(Gamma<0>{});
  } else if (gamma == 1) {
    f(Gamma<1>{});
  } else {
    f(Gamma<-1>{});
  }
}

}  // namespace mfk::cpu
