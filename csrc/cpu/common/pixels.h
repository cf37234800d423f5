// Reading and writing of rows and pixels with any element type and strides.
#pragma once

#include <cstdint>

#include "core/scalar.h"
#include "cpu/common/gemm.h"
#include "cpu/common/predictions.h"

namespace mfk::cpu {
namespace {

template <class F>
MFK_INLINE void with_element(Element element, F f) {
  switch (element) {
    case Element::kHalf:
      return f(Half{});
    case Element::kBFloat16:
      return f(BFloat16{});
    case Element::kFloat:
      return f(float{});
    case Element::kDouble:
      return f(double{});
  }
}

template <class S, class T>
void copy_strided(const S* source, int64_t stride, int64_t count, T* result) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) result[i] = static_cast<T>(widen(source[i]));
  } else {
    for (int64_t i = 0; i < count; ++i) result[i] = static_cast<T>(widen(source[i * stride]));
  }
}

// Copies rows [first, last) of one mask of dense logits.
template <class T>
void copy_logits(const MaskPredictions& predictions, int64_t layer, int64_t image, int64_t query,
                 int64_t first, int64_t last, T* result) {
  const EmbedStride& stride = predictions.embed_stride;
  with_element(predictions.embed_element, [&](auto kind) {
    const auto* source = static_cast<const decltype(kind)*>(predictions.embed) +
                         layer * stride.layer + image * stride.image + query * stride.query;
    for (int64_t y = first; y < last; ++y) {
      copy_strided(source + y * stride.row, stride.column, predictions.width,
                   result + (y - first) * predictions.width);
    }
  });
}

// Packs a panel of pixels whose entries are adjacent in memory, in tiles: tile_row(j, c) returns
// entries of pixel j, from c on. Returns how many are packed: all but those that fill no tile.
template <class E, class F>
MFK_INLINE int64_t pack_tiles(int64_t entries, E* panel, const F& tile_row) {
  int64_t packed = 0;
#if defined(__AVX2__)
  if constexpr (sizeof(E) == sizeof(float)) {
    constexpr int64_t kColumns = kPanel<float>;
    packed = entries / kTile * kTile;
    for (int64_t j = 0; j < kColumns; j += kTile) {
      for (int64_t c = 0; c < packed; c += kTile) {
        Tile tile[kTile];
        for (int k = 0; k < kTile; ++k) tile[k] = tile_row(j + k, c);
        transpose(tile);
        for (int k = 0; k < kTile; ++k) store(panel + (c + k) * kColumns + j, tile[k]);
      }
    }
  }
#else
  (void)entries, (void)panel, (void)tile_row;
#endif
  return packed;
}

// Packs the pixel features of rows [first, last) of one image into panels [channels, kPanel].
template <class T>
void pack_rows(const MaskPredictions& predictions, int64_t image, int64_t first, int64_t last,
               T* panels) {
  constexpr int64_t kColumns = kPanel<T>;
  const FeatureStride& stride = predictions.features_stride;
  const int64_t width = predictions.width, pixels = (last - first) * width;
  const int64_t channels = predictions.channels;
  with_element(predictions.features_element, [&](auto kind) {
    const auto* source = static_cast<const decltype(kind)*>(predictions.features) +
                         image * stride.image + first * stride.row;
    const bool one_run = stride.column == 1 && stride.row == width;
    const bool by_channel = stride.column < stride.channel;
    for (int64_t p = 0; p < pixels; p += kColumns) {
      T* panel = panels + p * channels;
      const int64_t inside = smaller(pixels - p, kColumns);
      if (one_run) {
        for (int64_t c = 0; c < channels; ++c) {
          copy_strided(source + c * stride.channel + p, 1, inside, panel + c * kColumns);
        }
        continue;
      }
      for (int64_t j = 0; by_channel && j < inside;) {  // a part of a row at a time
        const int64_t x = (p + j) % width, count = smaller(width - x, inside - j);
        const auto* pixel = source + (p + j) / width * stride.row + x * stride.column;
        for (int64_t c = 0; c < channels; ++c) {
          copy_strided(pixel + c * stride.channel, stride.column, count, panel + c * kColumns + j);
        }
        j += count;
      }
      if (by_channel) continue;
      int64_t offsets[kColumns];
      for (int64_t j = 0; j < kColumns; ++j) {
        const int64_t pixel = p + smaller(j, inside - 1);
        offsets[j] = pixel / width * stride.row + pixel % width * stride.column;
      }
      const auto tile_row = [&](int64_t j, int64_t c) {
        return load_tile_row(source + offsets[j] + c);
      };
      const int64_t packed = stride.channel == 1 ? pack_tiles(channels, panel, tile_row) : 0;
      for (int64_t j = 0; j < inside; ++j) {
        for (int64_t c = packed; c < channels; ++c) {
          panel[c * kColumns + j] = static_cast<T>(widen(source[offsets[j] + c * stride.channel]));
        }
      }
    }
  });
}

// Calls f with a function that maps the index of a pixel to its offset in memory. It divides only
// if rows are not adjacent in memory.
template <class F>
MFK_INLINE void with_offsets(int64_t width, int64_t row_stride, int64_t stride, F f) {
  if (row_stride == width * stride) {
    f([=](int64_t pixel) { return pixel * stride; });
  } else {
    f([=](int64_t pixel) { return pixel / width * row_stride + pixel % width * stride; });
  }
}

// Packs the features of given pixels (-1: any pixel) of one image into panels [channels, kPanel].
template <class T>
void pack_pixels(const MaskPredictions& predictions, int64_t image, const int32_t* pixels,
                 int64_t count, T* panels) {
  constexpr int64_t kColumns = kPanel<T>;
  const FeatureStride& stride = predictions.features_stride;
  with_element(predictions.features_element, [&](auto kind) {
    const auto* source =
        static_cast<const decltype(kind)*>(predictions.features) + image * stride.image;
    with_offsets(predictions.width, stride.row, stride.column, [&](auto offset_of) {
      for (int64_t p = 0; p < count; p += kColumns) {
        T* panel = panels + p * predictions.channels;
        int64_t offsets[kColumns];
        bool run = true;
        for (int64_t j = 0; j < kColumns; ++j) {
          offsets[j] = offset_of(pixels[p + j] < 0 ? 0 : pixels[p + j]);
          run = run && offsets[j] == offsets[0] + j;
        }
        const auto tile_row = [&](int64_t j, int64_t c) {
          return load_tile_row(source + offsets[j] + c);
        };
        const int64_t packed =
            stride.channel == 1 ? pack_tiles(predictions.channels, panel, tile_row) : 0;
        for (int64_t c = packed; c < predictions.channels; ++c) {
          const auto* channel = source + c * stride.channel;
          T* row = panel + c * kColumns;
          if (run) {
            copy_strided(channel + offsets[0], 1, kColumns, row);
          } else {
            // Gather first, so that the conversion is vectorised.
            decltype(kind) entries[kColumns];
            for (int64_t j = 0; j < kColumns; ++j) entries[j] = channel[offsets[j]];
            copy_strided(entries, 1, kColumns, row);
          }
        }
      }
    });
  });
}

// Copies given pixels (-1: any pixel) of one mask of dense logits.
template <class T>
void pick_logits(const MaskPredictions& predictions, int64_t layer, int64_t image, int64_t query,
                 const int32_t* pixels, int64_t count, T* result) {
  const EmbedStride& stride = predictions.embed_stride;
  with_element(predictions.embed_element, [&](auto kind) {
    const auto* source = static_cast<const decltype(kind)*>(predictions.embed) +
                         layer * stride.layer + image * stride.image + query * stride.query;
    with_offsets(predictions.width, stride.row, stride.column, [&](auto offset_of) {
      for (int64_t i = 0; i < count; ++i) {
        result[i] = static_cast<T>(widen(source[offset_of(pixels[i] < 0 ? 0 : pixels[i])]));
      }
    });
  });
}

template <class T>
void store_run(Element element, void* data, int64_t offset, int64_t count, const T* values) {
  with_element(element, [&](auto kind) {
    using S = decltype(kind);
    S* result = static_cast<S*>(data) + offset;
    for (int64_t i = 0; i < count; ++i) result[i] = narrow<S>(values[i]);
  });
}

}  // namespace
}  // namespace mfk::cpu
