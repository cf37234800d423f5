// The full-resolution rows of matched masks: resized on the fly, never all in memory.
#pragma once

#include "cpu/common/pixels.h"
#include "cpu/common/vector_math.h"
#include "cpu/mask_loss/kernel.h"

namespace mfk::cpu {
namespace {

// The first full-resolution row whose upper source row is at least `low`.
template <class T>
int64_t first_full_row(const AxisResize<T>& vertical, int64_t low) {
  int64_t from = 0, to = vertical.new_size;
  while (from < to) {
    const int64_t middle = (from + to) / 2;
    if (vertical.low[middle] < low) {
      from = middle + 1;
    } else {
      to = middle;
    }
  }
  return from;
}

template <class T>
void resize_row(const AxisResize<T>& horizontal, const T* row, T* result) {
  constexpr int kWidth = VectorOf<T>::kWidth;
  const int64_t width = round_up(horizontal.new_size, kWidth);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    for (int64_t x = 0; x < width; x += kWidth) {
      const Ints low = load<Ints>(horizontal.low + x), high = load<Ints>(horizontal.high + x);
      const int32_t base = horizontal.low[x];
      // When enlarging, the sources of 16 pixels lie within 32 pixels, which two registers hold.
      if (horizontal.high[x + kWidth - 1] - base < 32) {
        const Floats a = load<Floats>(row + base), b = load<Floats>(row + base + kWidth);
        const auto pick = [&](const Ints& source) -> Floats {
          return _mm512_permutex2var_ps(a, reinterpret_cast<__m512i>(source - base), b);
        };
        store(result + x, multiply_add(load<Floats>(horizontal.high_weight + x), pick(high),
                                       load<Floats>(horizontal.low_weight + x) * pick(low)));
      } else {
        for (int64_t k = x; k < x + kWidth; ++k) {
          result[k] = horizontal.low_weight[k] * row[horizontal.low[k]] +
                      horizontal.high_weight[k] * row[horizontal.high[k]];
        }
      }
    }
    return;
  }
#endif
  for (int64_t x = 0; x < width; ++x) {
    result[x] = horizontal.low_weight[x] * row[horizontal.low[x]] +
                horizontal.high_weight[x] * row[horizontal.high[x]];
  }
}

// The adjoint of `resize_row`.
template <class T>
void gather(const AxisResize<T>& horizontal, const T* grad, T* result) {
  const T* weights = horizontal.weights;
  for (int64_t x = 0; x < horizontal.size; ++x, weights += horizontal.span) {
    const T* from = grad + horizontal.start[x];
    T sum = 0;
    for (int64_t k = 0; k < horizontal.span; ++k) sum += weights[k] * from[k];
    result[x] = sum;
  }
}

// Which pixels of a full-resolution row belong to a segment.
struct LabelRow {
  using Pixel = int16_t;
  const int16_t* pixels;
  int16_t segment;
};
struct MaskRow {
  using Pixel = uint8_t;
  const uint8_t* pixels;
};

template <class T>
MFK_INLINE IndexFor<T> matches(const LabelRow& row, int64_t x) {
  using Labels = typename VectorOfBytes<int16_t, 2 * VectorOf<T>::kWidth>::type;
  return __builtin_convertvector(load<Labels>(row.pixels + x), IndexFor<T>) == row.segment;
}
template <class T>
MFK_INLINE IndexFor<T> matches(const MaskRow& row, int64_t x) {
  using Bytes = typename VectorOfBytes<uint8_t, VectorOf<T>::kWidth>::type;
  return __builtin_convertvector(load<Bytes>(row.pixels + x), IndexFor<T>) != 0;
}

// Calls f(targets, index of the first pixel in them, first pixel, which lanes are inside the row).
template <class T, class Row, class F>
MFK_INLINE void for_vectors(const Row& row, int64_t width, F f) {
  constexpr int kWidth = VectorOf<T>::kWidth;
  const int64_t whole = width / kWidth * kWidth;
  for (int64_t x = 0; x < whole; x += kWidth) f(row, x, x, ~IndexFor<T>{});
  if (whole == width) return;
  // Copy the last targets, because memory beyond them must not be read.
  typename Row::Pixel end[kWidth] = {};
  for (int64_t k = 0; k < width - whole; ++k) end[k] = row.pixels[whole + k];
  Row copy = row;
  copy.pixels = end;
  f(copy, 0, whole, lane_indices<T>() < static_cast<int>(width - whole));
}

template <class T>
struct Options {
  T gamma;
  T positive, negative;  // the weights of positives and of negatives, from alpha
};

template <class T>
Options<T> options_of(const MaskLossProblem& problem) {
  const bool weighted = problem.alpha >= 0;
  return {static_cast<T>(problem.gamma), static_cast<T>(weighted ? problem.alpha : 1),
          static_cast<T>(weighted ? 1 - problem.alpha : 1)};
}

// A full-resolution row, interpolated between two horizontally resized rows.
template <class T>
struct FullRow {
  const T *above, *below;
  T above_weight, below_weight;

  MFK_INLINE VectorFor<T> logits(int64_t x) const {
    using V = VectorFor<T>;
    return multiply_add(broadcast(below_weight), load<V>(below + x),
                        above_weight * load<V>(above + x));
  }
};

template <class T>
struct Sums {
  VectorFor<T> focal{}, overlap{}, probability{};
};

template <class T, int kGamma, class Row>
void add_losses(const FullRow<T>& full, const Row& row, int64_t width, const Options<T>& options,
                Sums<T>& total) {
  using V = VectorFor<T>;
  Sums<T> sums;
  for_vectors<T>(
      row, width, [&](const Row& targets, int64_t index, int64_t x, const IndexFor<T>& inside) {
        const IndexFor<T> match = matches<T>(targets, index);
        const V logit = full.logits(x);
        const Sigmoid<V> s = sigmoid(match ? -logit : logit);
        const V weight = match ? broadcast(options.positive) : broadcast(options.negative);
        const V probability = match ? s.q : s.p;
        const V loss = weight * focal<kGamma>(s, options.gamma);
        sums.focal += inside ? loss : V{};
        sums.probability += inside ? probability : V{};
        sums.overlap += (match & inside) ? probability : V{};
      });
  total.focal += sums.focal;
  total.probability += sums.probability;
  total.overlap += sums.overlap;
}

// Adds the gradient of a full-resolution row to those of the two rows that it is interpolated from.
template <class T, int kGamma, class Row>
void add_gradients(const FullRow<T>& full, const Row& row, int64_t width, const Options<T>& options,
                   const GradFactors<T>& factors, T* above, T* below) {
  using V = VectorFor<T>;
  const T positive = -factors.focal * options.positive, negative = factors.focal * options.negative;
  for_vectors<T>(
      row, width, [&](const Row& targets, int64_t index, int64_t x, const IndexFor<T>& inside) {
        const IndexFor<T> match = matches<T>(targets, index);
        const V logit = full.logits(x);
        const Sigmoid<V> s = sigmoid(match ? -logit : logit);
        const V weight = match ? broadcast(positive) : broadcast(negative);
        const V dice = match ? broadcast(factors.dice_inside) : broadcast(factors.dice_outside);
        const V gradient =
            multiply_add(weight, focal_gradient<kGamma>(s, options.gamma), dice * s.p * s.q);
        const V kept = inside ? gradient : V{};
        store(above + x, multiply_add(broadcast(full.above_weight), kept, load<V>(above + x)));
        store(below + x, multiply_add(broadcast(full.below_weight), kept, load<V>(below + x)));
      });
}

}  // namespace
}  // namespace mfk::cpu
