// Rows of the masks of one view: computes logits, resizes them, and writes sigmoids into panels.
#pragma once

#include "cpu/common/gemm.h"
#include "cpu/common/memory.h"
#include "cpu/common/pixels.h"
#include "cpu/common/vector_math.h"
#include "cpu/segmentation/kernel.h"

namespace mfk::cpu {
namespace {

static_assert(kBlock % kTileRows == 0);
static_assert(kChunk % kPanel<float> == 0 && kSlack >= kPanel<float>);

// The rows of a packed left factor from `row` on, a multiple of kTileRows.
template <class T>
Left<T> packed_rows(const T* packed, int64_t row, int64_t depth) {
  return {packed + row / kBlock * kBlock * depth + row % kBlock, 1, kBlock};
}

// The sigmoid as PyTorch computes it, but 0 where it would be denormal.
template <class T>
MFK_INLINE VectorFor<T> probability_of(const VectorFor<T>& x) {
  constexpr T kLeast = sizeof(T) == 4 ? -87 : -708;
  return x < kLeast ? VectorFor<T>{} : 1 / (1 + exp_negative(-x));
}

// Replaces logits that are not finite, see docs/not_finite.md, so that interpolation does not
// multiply infinity by a weight of zero.
template <class T>
MFK_INLINE T finite_logit(T logit, bool is_product) {
  constexpr T kMost = static_cast<T>(1e30);
  if (is_product && logit - logit != 0) return -kMost;
  if (!(logit >= -kMost)) return -kMost;
  return logit > kMost ? kMost : logit;
}

// low_weight * low + high_weight * high; interpolates between rows and between columns.
template <class V>
MFK_INLINE V blend(const V& low_weight, const V& low, const V& high_weight, const V& high) {
  return multiply_add(high_weight, high, low_weight * low);
}

template <class T>
struct RowPair {
  const T *low, *high;
  T low_weight, high_weight;
};

// Interpolates between two rows of each query; the rows of queries are `stride` apart.
template <class T>
void blend_rows(RowPair<T> pair, int64_t rows, int64_t stride, int64_t columns, T* result,
                int64_t result_stride) {
  using V = VectorFor<T>;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t x = 0; x < columns; x += VectorOf<T>::kWidth) {
      store(result + x, blend(broadcast(pair.low_weight), load<V>(pair.low + x),
                              broadcast(pair.high_weight), load<V>(pair.high + x)));
    }
    pair.low += stride;
    pair.high += stride;
    result += result_stride;
  }
}

template <class T>
MFK_INLINE VectorFor<T> pick(const T* row, const IndexFor<T>& indices) {
  VectorFor<T> entries;
  for (int k = 0; k < VectorOf<T>::kWidth; ++k) entries[k] = row[indices[k]];
  return entries;
}

// The same for indices less than kNear, with a permutation of registers.
#if defined(__AVX512F__)
template <class T>
constexpr int kNear = 2 * VectorOf<T>::kWidth;
MFK_INLINE Floats pick_near(const float* row, const Ints& indices) {
  return _mm512_permutex2var_ps(load<Floats>(row), reinterpret_cast<__m512i>(indices),
                                load<Floats>(row + 16));
}
MFK_INLINE Doubles pick_near(const double* row, const Longs& indices) {
  return _mm512_permutex2var_pd(load<Doubles>(row), reinterpret_cast<__m512i>(indices),
                                load<Doubles>(row + 8));
}
#else
template <class T>
constexpr int kNear = 0;
template <class T>
MFK_INLINE VectorFor<T> pick_near(const T* row, const IndexFor<T>& indices) {
  return pick(row, indices);
}
#if defined(__AVX2__)
template <>
constexpr int kNear<float> = VectorOf<float>::kWidth;
MFK_INLINE Floats pick_near(const float* row, const Ints& indices) {
  return _mm256_permutevar8x32_ps(load<Floats>(row), reinterpret_cast<__m256i>(indices));
}
#endif
#endif

// Computes columns [begin, begin + columns) of the result from rows that start at column `origin`.
template <bool kSigmoid, class T>
void resize_columns(const Resize<T>& table, int64_t begin, int64_t columns, const T* rows,
                    int64_t stride, int64_t origin, int64_t count, T* result,
                    int64_t result_stride) {
  using V = VectorFor<T>;
  using Index = IndexFor<T>;
  constexpr int kWidth = VectorOf<T>::kWidth;
  using Indices = typename VectorOfBytes<int32_t, 4 * kWidth>::type;
  for (int64_t x = begin; x < begin + columns; x += kWidth) {
    const V low_weight = load<V>(table.low_weight + x);
    const V high_weight = load<V>(table.high_weight + x);
    // Source columns are ascending, or descending if the view is flipped.
    const int64_t first = smaller(table.low[x], table.low[x + kWidth - 1]);
    const int64_t last = larger(table.high[x], table.high[x + kWidth - 1]);
    const int32_t offset = static_cast<int32_t>(first);
    const Index low = __builtin_convertvector(load<Indices>(table.low + x) - offset, Index);
    const Index high = __builtin_convertvector(load<Indices>(table.high + x) - offset, Index);
    const T* row = rows + (first - origin);
    T* target = result + (x - begin);
    const auto run = [&](auto pick_entries) {
      for (int64_t i = 0; i < count; ++i, row += stride, target += result_stride) {
        const V value =
            blend(low_weight, pick_entries(row, low), high_weight, pick_entries(row, high));
        store(target, kSigmoid ? probability_of<T>(value) : value);
      }
    };
    if (last - first < kNear<T>) {
      run([](const T* from, const Index& indices) { return pick_near(from, indices); });
    } else {
      run([](const T* from, const Index& indices) { return pick(from, indices); });
    }
  }
}

// The logits of one view, and the intermediate results of resizing them.
template <class T>
class ViewRows {
 public:
  ViewRows(const SegmentationPlan<T>& plan, const ViewPlan<T>& view, Arena& arena)
      : plan_(plan), view_(view), predictions_(*view.predictions) {
    logits_ = arena.take<T>(view.ring * view.count * view.logits_stride);
    mask_row_ = arena.take<T>(view.count * view.mask_stride);
    if (view.twice) {
      for (T*& row : input_rows_) row = arena.take<T>(view.count * view.input_stride);
      input_row_ = arena.take<T>(view.count * view.input_stride);
    }
  }

  // Loads the logits for rows [begin, end) of the result. `features`: memory for a row of features.
  void load_rows(int64_t begin, int64_t end, T* features) {
    const auto [first, last] = mask_rows(begin, end);
    for (int64_t row = larger(first, loaded_); row < last; ++row) load(row, features);
    loaded_ = last;
  }

  void start_chunk(int64_t chunk) {
    chunk_ = chunk;
    input_held_[0] = input_held_[1] = -1;
  }

  void start_row(int64_t y) {
    if (!view_.twice) {
      blend_masks(y);
      return;
    }
    const Resize<T>& rows = view_.second_rows;
    const Span columns = view_.input_columns[chunk_];
    blend_rows<T>(
        {input_row(rows.low[y]), input_row(rows.high[y]), rows.low_weight[y], rows.high_weight[y]},
        view_.count, view_.input_stride, columns.end - columns.begin, input_row_,
        view_.input_stride);
  }

  // Writes a panel of all queries: the pixels of the current row from column x on.
  void write_panel(int64_t x, T* panel) const {
    write_queries(x, 0, view_.heavy, panel + view_.heavy_offset * kPanel<T>);
    write_queries(x, view_.heavy, view_.count, panel + view_.light_offset * kPanel<T>);
  }

 private:
  // The rows of masks that rows [begin, end) of the result need.
  Span mask_rows(int64_t begin, int64_t end) const {
    if (view_.twice) {
      const Resize<T>& rows = view_.second_rows;
      return {view_.rows.low[rows.low[begin]], view_.rows.high[rows.high[end - 1]] + 1};
    }
    return {view_.rows.low[begin], view_.rows.high[end - 1] + 1};
  }

  T* logits(int64_t row) const {
    return logits_ + row % view_.ring * view_.count * view_.logits_stride;
  }

  void load(int64_t row, T* features) const {
    T* result = logits(row);
    if (view_.embed == nullptr) {
      for (int64_t i = 0; i < view_.count; ++i) {
        copy_logits(predictions_, 0, 0, view_.queries[i], row, row + 1,
                    result + i * view_.logits_stride);
      }
    } else {
      multiply_row(row, features, result);
    }
    for (int64_t i = 0; i < view_.count; ++i, result += view_.logits_stride) {
      for (int64_t x = 0; x < predictions_.width; ++x) {
        result[x] = finite_logit(result[x], view_.embed != nullptr);
      }
    }
  }

  void multiply_row(int64_t row, T* features, T* result) const {
    const int64_t channels = predictions_.channels;
    pack_rows(predictions_, 0, row, row + 1, features);
    for (int64_t x = 0; x < predictions_.width; x += kPanel<T>) {
      for (int64_t i = 0; i < view_.count; i += kTileRows) {
        multiply<false>(smaller(kTileRows, view_.count - i), packed_rows(view_.embed, i, channels),
                        features + x * channels, channels, result + i * view_.logits_stride + x,
                        view_.logits_stride);
      }
    }
  }

  void write_queries(int64_t x, int64_t begin, int64_t end, T* panel) const {
    if (!view_.twice) {
      resize_columns<true>(view_.columns, x, kPanel<T>, mask_row_ + begin * view_.mask_stride,
                           view_.mask_stride, view_.mask_columns[chunk_].begin, end - begin, panel,
                           kPanel<T>);
      return;
    }
    (plan_.resize_logits ? resize_columns<true, T>
                         : resize_columns<false, T>)(view_.second_columns, x, kPanel<T>,
                                                     input_row_ + begin * view_.input_stride,
                                                     view_.input_stride,
                                                     view_.input_columns[chunk_].begin, end - begin,
                                                     panel, kPanel<T>);
  }

  // Interpolates masks vertically to row y of the first resizing.
  void blend_masks(int64_t y) const {
    const Resize<T>& rows = view_.rows;
    const Span columns = view_.mask_columns[chunk_];
    blend_rows<T>({logits(rows.low[y]) + columns.begin, logits(rows.high[y]) + columns.begin,
                   rows.low_weight[y], rows.high_weight[y]},
                  view_.count, view_.logits_stride, columns.end - columns.begin, mask_row_,
                  view_.mask_stride);
  }

  // Row y of the input. Two successive rows are cached.
  const T* input_row(int64_t y) {
    T* result = input_rows_[y % 2];
    if (input_held_[y % 2] == y) return result;
    input_held_[y % 2] = y;
    blend_masks(y);
    const Span columns = view_.input_columns[chunk_];
    (plan_.resize_logits
         ? resize_columns<false, T>
         : resize_columns<true, T>)(view_.columns, columns.begin, columns.end - columns.begin,
                                    mask_row_, view_.mask_stride, view_.mask_columns[chunk_].begin,
                                    view_.count, result, view_.input_stride);
    return result;
  }

  const SegmentationPlan<T>& plan_;
  const ViewPlan<T>& view_;
  const MaskPredictions& predictions_;
  int64_t loaded_ = 0;  // rows of logits up to this one are in the ring buffer
  int64_t chunk_ = 0;
  int64_t input_held_[2] = {-1, -1};
  T* logits_ = nullptr;     // [ring, count, logits_stride]
  T* mask_row_ = nullptr;   // [count, mask_stride]: a chunk of a row interpolated between mask rows
  T* input_rows_[2] = {};   // [count, input_stride]: a chunk of two rows of the input
  T* input_row_ = nullptr;  // the same of a row interpolated between them
};

}  // namespace
}  // namespace mfk::cpu
