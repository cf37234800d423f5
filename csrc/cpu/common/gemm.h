// Products of small matrices that are in the cache already, with vector instructions.
//
// PyTorch's matrix product would have to write its result to memory before the losses could read
// it, and runs at half the speed on processors that its library does not optimise for.
#pragma once

#include <cstdint>
#include <utility>

#include "core/integers.h"
#include "cpu/common/vector_math.h"

namespace mfk::cpu {
namespace {

// A panel holds kPanel columns of the right factor in row-major order.
template <class T>
constexpr int kPanel = 2 * VectorOf<T>::kWidth;

// Rows of a tile of the result. The tile, two vectors of the panel and an entry of the left factor
// fill the vector registers.
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif

// The left factor: entry (i, k) is data[i * row + k * column].
template <class T>
struct Left {
  const T* data;
  int64_t row, column;
};

template <int kRows, bool kAdd, class T>
void multiply_tile(Left<T> left, const T* panel, int64_t depth, T* result, int64_t stride) {
  using V = VectorFor<T>;
  constexpr int kWidth = VectorOf<T>::kWidth;
  V sums[kRows][2];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < 2; ++j) sums[i][j] = V{};
  }
  if constexpr (kAdd) {
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < 2; ++j) __builtin_prefetch(result + i * stride + j * kWidth, 1);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    const V first = load<V>(panel);
    const V second = load<V>(panel + kWidth);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const V entry = broadcast(left.data[i * left.row]);
      sums[i][0] = multiply_add(entry, first, sums[i][0]);
      sums[i][1] = multiply_add(entry, second, sums[i][1]);
    }
    left.data += left.column;
    panel += kPanel<T>;
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < 2; ++j) {
      T* to = result + i * stride + j * kWidth;
      store(to, kAdd ? load<V>(to) + sums[i][j] : sums[i][j]);
    }
  }
}

template <bool kAdd, class T, int... kRows>
void multiply_rows(int64_t rows, const Left<T>& left, const T* panel, int64_t depth, T* result,
                   int64_t stride, std::integer_sequence<int, kRows...>) {
  using Tile = void (*)(Left<T>, const T*, int64_t, T*, int64_t);
  static constexpr Tile kTiles[] = {multiply_tile<kRows + 1, kAdd, T>...};
  kTiles[rows - 1](left, panel, depth, result, stride);
}

// result[i * stride + j] = (with kAdd: its old value plus) the sum over k < depth of
// left(i, k) * panel[k][j], for 0 < rows <= kTileRows and all columns of the panel.
template <bool kAdd, class T>
MFK_INLINE void multiply(int64_t rows, const Left<T>& left, const T* panel, int64_t depth,
                         T* result, int64_t stride) {
  multiply_rows<kAdd>(rows, left, panel, depth, result, stride,
                      std::make_integer_sequence<int, kTileRows>());
}

}  // namespace
}  // namespace mfk::cpu
