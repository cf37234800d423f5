// Vectors for the instruction set that this file is compiled for, as GCC and Clang vector types.
// Intrinsics are used only where the compilers do not find the right instruction by themselves.
//
// All functions are always inlined, as object files for different instruction sets must not share
// code.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "core/host_device.h"
#include "core/scalar.h"

#if defined(__AVX512F__)
#define MFK_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define MFK_VECTOR_BYTES 32
#else
#define MFK_VECTOR_BYTES 16
#endif

namespace mfk::cpu {

// Rows of working memory are padded to this many entries, so that loops over them have no tail.
constexpr int32_t kRowPadding = 16;

template <class T>
struct VectorOf;
template <>
struct VectorOf<double> {
  static constexpr int kWidth = MFK_VECTOR_BYTES / 8;
  using type = double __attribute__((vector_size(MFK_VECTOR_BYTES)));
  using index = int64_t __attribute__((vector_size(MFK_VECTOR_BYTES)));
};
template <>
struct VectorOf<float> {
  static constexpr int kWidth = MFK_VECTOR_BYTES / 4;
  using type = float __attribute__((vector_size(MFK_VECTOR_BYTES)));
  using index = int32_t __attribute__((vector_size(MFK_VECTOR_BYTES)));
};

using Doubles = VectorOf<double>::type;
using Longs = VectorOf<double>::index;

template <class V, class T>
MFK_INLINE V load(const T* data) {
  V value;
  __builtin_memcpy(&value, data, sizeof(V));
  return value;
}

template <class V, class T>
MFK_INLINE void store(T* data, const V& value) {
  __builtin_memcpy(data, &value, sizeof(V));
}

MFK_INLINE Doubles load_doubles(const double* data) { return load<Doubles>(data); }

MFK_INLINE Doubles load_doubles(const float* data) {
#if defined(__AVX512F__)
  // The masked intrinsic, because GCC 12 warns about its own header for the other one.
  return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(data));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm_loadu_ps(data));
#else
  using Floats = float __attribute__((vector_size(MFK_VECTOR_BYTES / 2)));
  return __builtin_convertvector(load<Floats>(data), Doubles);
#endif
}

template <class V>
MFK_INLINE V minimum(const V& a, const V& b) {
  return a < b ? a : b;
}

template <class V>
MFK_INLINE V maximum(const V& a, const V& b) {
  return a > b ? a : b;
}

// 0, 1, 2, ...
template <class T>
MFK_INLINE typename VectorOf<T>::index lane_indices() {
  typename VectorOf<T>::index indices;
  for (int k = 0; k < VectorOf<T>::kWidth; ++k) indices[k] = k;
  return indices;
}

template <class T, int kBytes>
struct VectorOfBytes {
  typedef T type __attribute__((vector_size(kBytes)));
};

// Loads as many elements as the vector has, converted to its type.
template <class V, class T>
MFK_INLINE V load_widened(const T* data) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    constexpr int kBytes = sizeof(V);
    using Shorts = typename VectorOfBytes<uint16_t, kBytes / 2>::type;
    using Words = typename VectorOfBytes<uint32_t, kBytes>::type;
    const Words bits = __builtin_convertvector(load<Shorts>(data), Words) << 16;
    return load<V>(&bits);
  } else {
    return load<V>(data);
  }
}

// Stores a vector, rounded like `narrow`.
template <class V, class T>
MFK_INLINE void store_narrowed(T* data, const V& value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    constexpr int kBytes = sizeof(V);
    using Shorts = typename VectorOfBytes<uint16_t, kBytes / 2>::type;
    using Words = typename VectorOfBytes<uint32_t, kBytes>::type;
    const Words bits = load<Words>(&value);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words quiet = (bits >> 16) | 0x40u;
    const Words chosen = (bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
    store(data, __builtin_convertvector(chosen, Shorts));
  } else {
    store(data, value);
  }
}

// Reduces a vector by f, without branches: it is halved until 16 bytes are left.
template <class T, int kBytes = MFK_VECTOR_BYTES, class F>
MFK_INLINE T reduced(const typename VectorOfBytes<T, kBytes>::type values, F f) {
  if constexpr (kBytes > 16) {
    typename VectorOfBytes<T, kBytes / 2>::type halves[2];
    __builtin_memcpy(halves, &values, kBytes);
    return reduced<T, kBytes / 2>(f(halves[0], halves[1]), f);
  } else if constexpr (sizeof(T) == 8) {
    return f(T{values[0]}, T{values[1]});
  } else {
    return f(f(T{values[0]}, T{values[1]}), f(T{values[2]}, T{values[3]}));
  }
}

template <class T>
MFK_INLINE T least_entry(const typename VectorOfBytes<T, MFK_VECTOR_BYTES>::type values) {
  return reduced<T>(values, [](const auto& a, const auto& b) { return minimum(a, b); });
}

// The smallest entry of `values` and, among entries equal to it, the lowest of `indices`.
template <class T>
struct Least {
  T value;
  int32_t index;
};

template <class T>
MFK_INLINE Least<T> least_of(const typename VectorOf<T>::type& values,
                             const typename VectorOf<T>::index& indices) {
  using Index = typename VectorOf<T>::index;
  using I = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  const T value = least_entry<T>(values);
  const Index candidates = values == value ? indices : Index{} + INT32_MAX;
  return {value, static_cast<int32_t>(least_entry<I>(candidates))};
}

// --- Tiles of 8 x 8
// ---------------------------------------------------------------------------------

constexpr int kTile = 8;

using Tile = float __attribute__((vector_size(4 * kTile)));

MFK_INLINE Tile load_tile_row(const float* data) { return load<Tile>(data); }

template <class S>
MFK_INLINE Tile load_tile_row(const S* data) {
  Tile row;
  for (int k = 0; k < kTile; ++k) row[k] = widen(data[k]);
  return row;
}

MFK_INLINE Tile load_tile_row(const BFloat16* data) { return load_widened<Tile>(data); }

#if defined(__AVX2__)
MFK_INLINE Tile load_tile_row(const Half* data) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
}

MFK_INLINE void transpose(Tile (&rows)[kTile]) {
  __m256 a[kTile], b[kTile];
  for (int k = 0; k < kTile; k += 2) {
    a[k] = _mm256_unpacklo_ps(rows[k], rows[k + 1]);
    a[k + 1] = _mm256_unpackhi_ps(rows[k], rows[k + 1]);
  }
  for (int k = 0; k < kTile; k += 4) {
    b[k] = _mm256_shuffle_ps(a[k], a[k + 2], 0x44);
    b[k + 1] = _mm256_shuffle_ps(a[k], a[k + 2], 0xee);
    b[k + 2] = _mm256_shuffle_ps(a[k + 1], a[k + 3], 0x44);
    b[k + 3] = _mm256_shuffle_ps(a[k + 1], a[k + 3], 0xee);
  }
  for (int k = 0; k < 4; ++k) {
    rows[k] = _mm256_permute2f128_ps(b[k], b[k + 4], 0x20);
    rows[k + 4] = _mm256_permute2f128_ps(b[k], b[k + 4], 0x31);
  }
}
#else
MFK_INLINE void transpose(Tile (&rows)[kTile]) {
  for (int i = 0; i < kTile; ++i) {
    for (int j = 0; j < i; ++j) {
      const float swapped = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = swapped;
    }
  }
}
#endif

}  // namespace mfk::cpu
