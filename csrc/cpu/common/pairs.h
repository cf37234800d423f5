// Products of bfloat16 factors on processors with AVX512_BF16, where one instruction multiplies and
// adds pairs of entries as float32: twice as many as in float32 vectors.
#pragma once

#include "cpu/common/gemm.h"
#include "cpu/common/pixels.h"
#include "cpu/common/predictions.h"

namespace mfk::cpu {

// Two adjacent channels of an embedding or of a pixel.
struct BFloat16Pair {
  BFloat16 entries[2];
};

// The embeddings of all layers and queries, [B, L * Q, C].
template <class T>
struct Embeddings {
  const T* entries;           // or null if there are pairs
  const BFloat16Pair* pairs;  // [B, L * Q, C / 2], rounded up; or null
};

namespace {

// Calls f with the embeddings of the type that there is.
template <class T, class F>
MFK_INLINE void with_embeddings(const Embeddings<T>& embed, F f) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    if (embed.pairs != nullptr) return f(embed.pairs);
  }
#endif
  f(embed.entries);
}

// The entries of type E that hold all channels of an embedding.
template <class E>
MFK_INLINE int64_t depth_of(int64_t channels) {
  return std::is_same_v<E, BFloat16Pair> ? divide_up(channels, 2) : channels;
}

// Packs the features of `count` pixels of one image into panels [depth, kPanel].
template <class F>
MFK_INLINE void pack_pairs(const MaskPredictions& predictions, int64_t image, int64_t count,
                           const F& offset_of, BFloat16Pair* panels) {
  constexpr int64_t kColumns = kPanel<float>;
  const int64_t channels = predictions.channels;
  const int64_t next = predictions.features_stride.channel;
  const auto* source = static_cast<const BFloat16*>(predictions.features) +
                       image * predictions.features_stride.image;
  for (int64_t p = 0; p < count; p += kColumns) {
    int64_t offsets[kColumns];
    for (int64_t j = 0; j < kColumns; ++j) offsets[j] = offset_of(smaller(p + j, count - 1));
    BFloat16Pair* panel = panels + p * depth_of<BFloat16Pair>(channels);
    const auto tile_row = [&](int64_t j, int64_t c) {
      return load<Tile>(source + offsets[j] + 2 * c);
    };
    const int64_t packed = next == 1 ? pack_tiles(channels / 2, panel, tile_row) : 0;
    for (int64_t c = 2 * packed; c < channels; c += 2) {
      BFloat16Pair* row = panel + c / 2 * kColumns;
      const BFloat16* channel = source + c * next;
      for (int64_t j = 0; j < kColumns; ++j) {
        const BFloat16* entry = channel + offsets[j];
        row[j] = {entry[0], c + 1 < channels ? entry[next] : BFloat16{}};
      }
    }
  }
}

// The `pack_pixels` and `pack_rows` of pixels.h, for pairs.
inline void pack_pixels(const MaskPredictions& predictions, int64_t image, const int32_t* pixels,
                        int64_t count, BFloat16Pair* panels) {
  const FeatureStride& stride = predictions.features_stride;
  with_offsets(predictions.width, stride.row, stride.column, [&](auto offset_of) {
    pack_pairs(
        predictions, image, count,
        [&](int64_t p) { return offset_of(pixels[p] < 0 ? 0 : pixels[p]); }, panels);
  });
}

inline void pack_rows(const MaskPredictions& predictions, int64_t image, int64_t first,
                      int64_t last, BFloat16Pair* panels) {
  const FeatureStride& stride = predictions.features_stride;
  const int64_t begin = first * predictions.width;
  with_offsets(predictions.width, stride.row, stride.column, [&](auto offset_of) {
    pack_pairs(
        predictions, image, last * predictions.width - begin,
        [&](int64_t p) { return offset_of(begin + p); }, panels);
  });
}

#if defined(__AVX512F__)
template <int kRows>
__attribute__((target("avx512bf16"))) void multiply_pairs(const Left<BFloat16Pair>& left,
                                                          const BFloat16Pair* panel, int64_t depth,
                                                          float* result, int64_t stride) {
  constexpr int kWidth = VectorOf<float>::kWidth;
  __m512 sums[kRows][2];
  for (int i = 0; i < kRows; ++i) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
  const BFloat16Pair* pairs = left.data;
  for (int64_t k = 0; k < depth; ++k) {
    const auto first = load<__m512bh>(panel), second = load<__m512bh>(panel + kWidth);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const __m512i copies = _mm512_set1_epi32(load<int>(pairs + i * left.row));
      const auto pair = load<__m512bh>(&copies);
      sums[i][0] = _mm512_dpbf16_ps(sums[i][0], pair, first);
      sums[i][1] = _mm512_dpbf16_ps(sums[i][1], pair, second);
    }
    pairs += left.column;
    panel += kPanel<float>;
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < 2; ++j) store(result + i * stride + j * kWidth, sums[i][j]);
  }
}

template <int... kRows>
void multiply_pairs(int64_t rows, const Left<BFloat16Pair>& left, const BFloat16Pair* panel,
                    int64_t depth, float* result, int64_t stride,
                    std::integer_sequence<int, kRows...>) {
  using Tile = void (*)(const Left<BFloat16Pair>&, const BFloat16Pair*, int64_t, float*, int64_t);
  static constexpr Tile kTiles[] = {multiply_pairs<kRows + 1>...};
  kTiles[rows - 1](left, panel, depth, result, stride);
}

// The `multiply` of gemm.h, for pairs.
template <bool kAdd>
MFK_INLINE void multiply(int64_t rows, const Left<BFloat16Pair>& left, const BFloat16Pair* panel,
                         int64_t depth, float* result, int64_t stride) {
  static_assert(!kAdd);
  multiply_pairs(rows, left, panel, depth, result, stride,
                 std::make_integer_sequence<int, kTileRows>());
}
#endif

}  // namespace
}  // namespace mfk::cpu
