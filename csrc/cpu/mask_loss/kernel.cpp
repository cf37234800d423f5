// Computes one chunk of the mask loss on one thread. The build compiles this file once for each
// instruction set, with MFK_KERNEL as the name of its only public object.
#include "cpu/mask_loss/kernel.h"

#include "cpu/common/gemm.h"
#include "cpu/common/memory.h"
#include "cpu/common/pixels.h"
#include "cpu/mask_loss/rows.h"

namespace mfk::cpu {
namespace {

// Entries beyond the end of a row that may be read.
constexpr int64_t kSlack = 32;

// Low-resolution rows [own, own_end), and with the adjacent rows that they need, [first, last).
struct Strip {
  int64_t own, own_end, first, last;
};

template <class T>
Strip strip_of(const MaskLossPlan<T>& plan, int64_t index, bool before) {
  const int64_t height = plan.vertical.size;
  const int64_t own = index * plan.strip_rows;
  const int64_t end = smaller(height, own + plan.strip_rows);
  return {own, end, before ? larger(own - 1, 0) : own, smaller(height, end + 1)};
}

template <class T>
class ChunkWorker {
 public:
  ChunkWorker(const MaskLossPlan<T>& plan, int64_t image, void* memory, bool backward)
      : plan_(plan),
        problem_(*plan.problem),
        predictions_(problem_.predictions),
        image_(image),
        arena_(memory) {
    const int64_t low_width = plan.horizontal.size;
    const int64_t most_rows = smaller(plan.strip_rows + 2, plan.vertical.size);
    const int64_t pixels = round_up(most_rows * low_width, kPanel<T>);
    const int64_t width = round_up(plan.horizontal.new_size, VectorOf<T>::kWidth) + kSlack;
    logit_stride_ = pixels + kSlack;
    logits_ = arena_.template take<T>(kTileRows * logit_stride_);
    for (T*& row : resized_) row = arena_.template take<T>(width);
    const bool factors = predictions_.features != nullptr;
    if (factors) features_ = arena_.template take<T>(pixels * predictions_.channels);
    if (!backward) return;
    for (T*& row : full_grad_) row = arena_.template take<T>(width + plan.horizontal.span);
    grad_width_ = width + plan.horizontal.span;
    // Working memory is the same for every image.
    int64_t most_matched = 0;
    for (int64_t b = 0; b < predictions_.images; ++b) {
      most_matched = larger(most_matched, plan.first_row[b + 1] - plan.first_row[b]);
    }
    const int64_t own = round_up(plan.strip_rows * low_width, kPanel<T>);
    low_grad_ = arena_.template take<T>(most_matched * own);
    low_stride_ = own;
    if (!factors) return;
    by_pixel_ = arena_.template take<T>(round_up(most_matched, kPanel<T>) * own);
    by_row_ = arena_.template take<T>(most_matched * larger(kPanel<T>, kTileRows));
    tile_ = arena_.template take<T>(kTileRows * kPanel<T>);
    grad_embed_ =
        arena_.template take<T>(round_up(most_matched, kPanel<T>) * predictions_.channels);
    embed_ = arena_.template take<T>(most_matched * round_up(predictions_.channels, kPanel<T>));
  }

  int64_t bytes() const { return arena_.used(); }

  void forward(int64_t chunk) {
    double* sums =
        plan_.partial_sums + 3 * (plan_.first_row[image_] * plan_.chunks + chunk * rows());
    for (int64_t i = 0; i < 3 * rows(); ++i) sums[i] = 0;
    if (rows() == 0) return;
    for (int64_t index = first_strip(chunk); index < first_strip(chunk + 1); ++index) {
      const Strip strip = load_strip(index, false);
      for (int64_t row = 0; row < rows(); ++row) {
        Sums<T> total;
        walk(strip, strip.own, row, [&](const auto& full, const auto& targets, int64_t) {
          with_gamma(problem_.gamma, [&](auto gamma) {
            add_losses<T, decltype(gamma)::value>(full, targets, plan_.horizontal.new_size,
                                                  options_, total);
          });
        });
        sums[3 * row] += sum_of<T>(total.focal);
        sums[3 * row + 1] += sum_of<T>(total.overlap);
        sums[3 * row + 2] += sum_of<T>(total.probability);
      }
    }
  }

  void backward(int64_t chunk) {
    const bool factors = predictions_.features != nullptr;
    const bool embed = factors && problem_.grad_embed != nullptr;
    const bool features = factors && problem_.grad_features != nullptr;
    if (features && problem_.channels_last) pack_embeddings();
    if (embed) {
      const int64_t count = round_up(rows(), kPanel<T>) * predictions_.channels;
      for (int64_t i = 0; i < count; ++i) grad_embed_[i] = 0;
    }
    for (int64_t index = first_strip(chunk); index < first_strip(chunk + 1); ++index) {
      const Strip strip = load_strip(index, true);
      for (int64_t row = 0; row < rows(); ++row) compute_grad_row(strip, row);
      if (!factors) store_grad_logits(strip);
      if (embed) add_grad_embed(strip);
      if (features) store_grad_features(strip);
    }
    if (embed) store_grad_embed(chunk);
  }

 private:
  int64_t rows() const { return plan_.first_row[image_ + 1] - plan_.first_row[image_]; }
  const MatchedRow& matched(int64_t row) const { return plan_.rows[plan_.first_row[image_] + row]; }

  int64_t first_strip(int64_t chunk) const { return chunk * plan_.strips / plan_.chunks; }

  Strip load_strip(int64_t index, bool before) {
    const Strip strip = strip_of(plan_, index, before);
    if (predictions_.features != nullptr && rows() > 0) {
      pack_rows(predictions_, image_, strip.first, strip.last, features_);
    }
    return strip;
  }

  // The logits of a matched mask in the strip. Masks are requested in sequence, and computed in
  // tiles.
  const T* logits_of(const Strip& strip, int64_t row) {
    const int64_t pixels = (strip.last - strip.first) * predictions_.width;
    if (predictions_.features != nullptr && row % kTileRows == 0) multiply_tiles(row, pixels);
    T* logits = logits_ + row % kTileRows * logit_stride_;
    if (predictions_.features == nullptr) {
      const MatchedRow& mask = matched(row);
      copy_logits(predictions_, mask.layer, image_, mask.query, strip.first, strip.last, logits);
    }
    // Infinite logits become NaN; interpolation alone might give infinity or NaN.
    for (int64_t p = 0; p < pixels; ++p) logits[p] += 0 * logits[p];
    return logits;
  }

  // Computes the logits of a tile of matched masks, from `row` on.
  void multiply_tiles(int64_t row, int64_t pixels) {
    const int64_t channels = predictions_.channels;
    const int64_t count = smaller(kTileRows, rows() - row);
    const T* embed = plan_.embed + (plan_.first_row[image_] + row) * channels;
    for (int64_t p = 0; p < pixels; p += kPanel<T>) {
      multiply<false, T>(count, {embed, channels, 1}, features_ + p * channels, channels,
                         logits_ + p, logit_stride_);
    }
  }

  // Calls f(full row, targets, upper source) for the full-resolution rows of a mask whose upper
  // source row is in [first, strip.own_end).
  template <class F>
  void walk(const Strip& strip, int64_t first, int64_t row, F f) {
    const T* logits = logits_of(strip, row);
    const AxisResize<T>& vertical = plan_.vertical;
    const Segments& segments = problem_.segments;
    const int64_t segment = matched(row).segment;
    const int64_t end = first_full_row(vertical, strip.own_end);
    int64_t held[2] = {-1, -1};
    const auto resized = [&](int64_t low) {
      T* result = resized_[low & 1];
      if (held[low & 1] != low) {
        held[low & 1] = low;
        resize_row(plan_.horizontal, logits + (low - strip.first) * predictions_.width, result);
      }
      return result;
    };
    for (int64_t y = first_full_row(vertical, first); y < end; ++y) {
      const FullRow<T> full{resized(vertical.low[y]), resized(vertical.high[y]),
                            vertical.low_weight[y], vertical.high_weight[y]};
      if (segments.label_map != nullptr) {
        const int64_t offset = (image_ * segments.height + y) * segments.width;
        f(full, LabelRow{segments.label_map + offset, static_cast<int16_t>(segment)},
          vertical.low[y]);
      } else {
        const int64_t index = plan_.first_segment[image_] + segment;
        const int64_t offset = (index * segments.height + y) * segments.width;
        f(full, MaskRow{segments.masks + offset}, vertical.low[y]);
      }
    }
  }

  // Computes the gradient of a mask's low-resolution logits, in its row of low_grad_.
  void compute_grad_row(const Strip& strip, int64_t row) {
    const GradFactors<T>& factors = plan_.grad_factors[plan_.first_row[image_] + row];
    T* result = low_grad_ + row * low_stride_;
    for (int64_t i = 0; i < low_stride_; ++i) result[i] = 0;
    T *above = full_grad_[0], *below = full_grad_[1];
    const auto clear = [&](T* grad) {
      for (int64_t x = 0; x < grad_width_; ++x) grad[x] = 0;
    };
    const auto flush = [&](int64_t low, const T* grad) {
      if (low < strip.own || low >= strip.own_end) return;
      gather(plan_.horizontal, grad, result + (low - strip.own) * predictions_.width);
    };
    clear(above);
    clear(below);
    // `above` accumulates the gradient of this low-resolution row, `below` that of the next.
    int64_t current = strip.first;
    walk(strip, strip.first, row, [&](const auto& full, const auto& targets, int64_t low) {
      if (low != current) {
        flush(current, above);
        if (low != current + 1) {
          flush(current + 1, below);
          clear(below);
        }
        T* const spare = above;
        above = below;
        below = spare;
        clear(below);
        current = low;
      }
      with_gamma(problem_.gamma, [&](auto gamma) {
        add_gradients<T, decltype(gamma)::value>(full, targets, plan_.horizontal.new_size, options_,
                                                 factors, above, below);
      });
    });
    // The last row is its own lower neighbour; its whole weight is that of the upper source.
    flush(current, above);
    flush(current + 1, below);
  }

  void store_grad_logits(const Strip& strip) {
    if (problem_.grad_embed == nullptr) return;
    const int64_t pixels = (strip.own_end - strip.own) * predictions_.width;
    for (int64_t row = rows() - 1; row >= 0; --row) {
      T* grad = low_grad_ + row * low_stride_;
      const MatchedRow& mine = matched(row);
      if (mine.first != row) {
        T* first = low_grad_ + mine.first * low_stride_;
        for (int64_t p = 0; p < pixels; ++p) first[p] += grad[p];
        continue;
      }
      const int64_t mask =
          (mine.layer * predictions_.images + image_) * predictions_.queries + mine.query;
      const int64_t offset = (mask * predictions_.height + strip.own) * predictions_.width;
      store_run(predictions_.embed_element, problem_.grad_embed, offset, pixels, grad);
    }
  }

  // grad_embed_ [panels of rows][C, kPanel] += features times gradients.
  void add_grad_embed(const Strip& strip) {
    constexpr int64_t kColumns = kPanel<T>;
    const int64_t channels = predictions_.channels;
    const int64_t pixels = (strip.own_end - strip.own) * predictions_.width;
    const int64_t before = (strip.own - strip.first) * predictions_.width;
    for (int64_t row = 0; row < rows(); row += kColumns) {
      const int64_t count = smaller(kColumns, rows() - row);
      for (int64_t p = 0; p < pixels; ++p) {
        T* entry = by_pixel_ + p * kColumns;
        for (int64_t i = 0; i < count; ++i) entry[i] = low_grad_[(row + i) * low_stride_ + p];
        for (int64_t i = count; i < kColumns; ++i) entry[i] = 0;
      }
      for (int64_t p = 0; p < pixels;) {
        const int64_t pixel = before + p;
        const int64_t within = pixel % kColumns;
        const int64_t depth = smaller(kColumns - within, pixels - p);
        const T* panel = features_ + (pixel - within) * channels + within;
        for (int64_t c = 0; c < channels; c += kTileRows) {
          multiply<true, T>(smaller(kTileRows, channels - c), {panel + c * kColumns, kColumns, 1},
                            by_pixel_ + p * kColumns, depth,
                            grad_embed_ + row * channels + c * kColumns, kColumns);
        }
        p += depth;
      }
    }
  }

  void store_grad_embed(int64_t chunk) {
    constexpr int64_t kColumns = kPanel<T>;
    const int64_t channels = predictions_.channels;
    T* result =
        plan_.partial_embed + (plan_.first_row[image_] * plan_.chunks + chunk * rows()) * channels;
    for (int64_t row = 0; row < rows(); ++row) {
      const T* from = grad_embed_ + row / kColumns * kColumns * channels + row % kColumns;
      for (int64_t c = 0; c < channels; ++c) result[row * channels + c] = from[c * kColumns];
    }
  }

  void store_grad_features(const Strip& strip) {
    problem_.channels_last ? store_by_pixel(strip) : store_by_channel(strip);
  }

  // Copies the gradients of masks at `count` pixels from `p` on, row by row with the given stride.
  void gather_pixels(int64_t p, int64_t count, int64_t stride) {
    for (int64_t row = 0; row < rows(); ++row) {
      const T* from = low_grad_ + row * low_stride_ + p;
      for (int64_t j = 0; j < count; ++j) by_row_[row * stride + j] = from[j];
    }
  }

  void store_by_channel(const Strip& strip) {
    constexpr int64_t kColumns = kPanel<T>;
    const int64_t channels = predictions_.channels;
    const int64_t pixels = (strip.own_end - strip.own) * predictions_.width;
    const T* embed = plan_.embed + plan_.first_row[image_] * channels;
    for (int64_t p = 0; p < pixels; p += kColumns) {
      gather_pixels(p, kColumns, kColumns);
      const int64_t inside = smaller(kColumns, pixels - p);
      for (int64_t c = 0; c < channels; c += kTileRows) {
        const int64_t count = smaller(kTileRows, channels - c);
        multiply<false, T>(count, {embed + c, 1, channels}, by_row_, rows(), tile_, kColumns);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t plane = (image_ * channels + c + i) * predictions_.height;
          store_run(predictions_.features_element, problem_.grad_features,
                    (plane + strip.own) * predictions_.width + p, inside, tile_ + i * kColumns);
        }
      }
    }
  }

  void store_by_pixel(const Strip& strip) {
    constexpr int64_t kColumns = kPanel<T>;
    const int64_t channels = predictions_.channels;
    const int64_t pixels = (strip.own_end - strip.own) * predictions_.width;
    const int64_t first = (image_ * predictions_.height + strip.own) * predictions_.width;
    for (int64_t p = 0; p < pixels; p += kTileRows) {
      const int64_t count = smaller(kTileRows, pixels - p);
      gather_pixels(p, count, kTileRows);
      for (int64_t c = 0; c < channels; c += kColumns) {
        multiply<false, T>(count, {by_row_, 1, kTileRows}, embed_ + c * rows(), rows(), tile_,
                           kColumns);
        for (int64_t i = 0; i < count; ++i) {
          store_run(predictions_.features_element, problem_.grad_features,
                    (first + p + i) * channels + c, smaller(kColumns, channels - c),
                    tile_ + i * kColumns);
        }
      }
    }
  }

  // Packs the embeddings of the rows into panels of channels.
  void pack_embeddings() {
    constexpr int64_t kColumns = kPanel<T>;
    const int64_t channels = predictions_.channels;
    const T* embed = plan_.embed + plan_.first_row[image_] * channels;
    for (int64_t c = 0; c < round_up(channels, kColumns); ++c) {
      T* column = embed_ + (c - c % kColumns) * rows() + c % kColumns;
      for (int64_t row = 0; row < rows(); ++row) {
        column[row * kColumns] = c < channels ? embed[row * channels + c] : T{0};
      }
    }
  }

  const MaskLossPlan<T>& plan_;
  const MaskLossProblem& problem_;
  const MaskPredictions& predictions_;
  const int64_t image_;
  Arena arena_;
  const Options<T> options_ = options_of<T>(problem_);
  T* logits_ = nullptr;  // [kTileRows, pixels of a strip]
  int64_t logit_stride_ = 0;
  T* resized_[2];          // two rows of logits at full width
  T* features_ = nullptr;  // of a strip, in panels of pixels
  T* full_grad_[2];        // gradients of two rows of logits at full width
  int64_t grad_width_ = 0;
  T* low_grad_ = nullptr;  // [rows, own pixels of a strip]
  int64_t low_stride_ = 0;
  T* by_pixel_ = nullptr;    // low_grad_ as a panel of rows
  T* by_row_ = nullptr;      // low_grad_ of some pixels, row by row
  T* tile_ = nullptr;        // a tile of the gradient of the features
  T* grad_embed_ = nullptr;  // gradient of the embeddings, in panels of rows
  T* embed_ = nullptr;       // embeddings of the rows, in panels of channels
};

template <class T>
constexpr MaskLossKernel<T> kernel() {
  return {
      [](const MaskLossPlan<T>& plan) { return ChunkWorker<T>(plan, 0, nullptr, false).bytes(); },
      [](const MaskLossPlan<T>& plan) { return ChunkWorker<T>(plan, 0, nullptr, true).bytes(); },
      [](const MaskLossPlan<T>& plan, int64_t image, int64_t chunk, void* memory) {
        ChunkWorker<T>(plan, image, memory, false).forward(chunk);
      },
      [](const MaskLossPlan<T>& plan, int64_t image, int64_t chunk, void* memory) {
        ChunkWorker<T>(plan, image, memory, true).backward(chunk);
      },
  };
}

}  // namespace

extern const PerType<MaskLossKernel> MFK_KERNEL;
const PerType<MaskLossKernel> MFK_KERNEL = {kernel<float>(), kernel<double>()};

}  // namespace mfk::cpu
