#include "cpu/mask_loss/plan.h"

#include <algorithm>
#include <vector>

#include "core/resample.h"
#include "cpu/common/parallel.h"
#include "cpu/common/pixels.h"
#include "cpu/mask_loss/kernel.h"

namespace mfk::cpu {
namespace {

template <class T>
const MaskLossTasks<T>& tasks();
template <>
const MaskLossTasks<float>& tasks() {
  return MFK_BEST_KERNEL(mask_loss).narrow;
}
template <>
const MaskLossTasks<double>& tasks() {
  return MFK_BEST_KERNEL(mask_loss).wide;
}

// Low-resolution pixels of a strip and tasks of a batch. Neither depends on the number of threads,
// because sums are rounded where they end.
constexpr int64_t kStripPixels = 2048;
constexpr int64_t kLeastStripRows = 4;
constexpr int64_t kTasks = 64;
// Vectors of full-resolution pixels may reach so far behind the last one.
constexpr int64_t kPadding = 16;

template <class T>
struct ResizeTable {
  std::vector<int32_t> low, high, start;
  std::vector<T> low_weight, high_weight, weights;
  Resize<T> table;

  ResizeTable(int64_t size, int64_t new_size) {
    std::vector<int64_t> end(size, 0);
    start.assign(size, static_cast<int32_t>(new_size));
    for (int64_t i = 0; i < new_size; ++i) {
      const Tap tap = bilinear_tap(i, size, new_size);
      const bool two = tap.high != tap.low;
      low.push_back(static_cast<int32_t>(tap.low));
      high.push_back(static_cast<int32_t>(tap.high));
      low_weight.push_back(static_cast<T>(two ? 1 - tap.weight : 1));
      high_weight.push_back(static_cast<T>(two ? tap.weight : 0));
      for (const int64_t source : {tap.low, tap.high}) {
        start[source] = std::min(start[source], static_cast<int32_t>(i));
        end[source] = i + 1;
      }
    }
    low.resize(new_size + kPadding, low.back());
    high.resize(new_size + kPadding, high.back());
    low_weight.resize(new_size + kPadding, 0);
    high_weight.resize(new_size + kPadding, 0);
    int64_t span = 0;
    for (int64_t j = 0; j < size; ++j) span = std::max(span, end[j] - start[j]);
    weights.assign(size * span, 0);
    for (int64_t j = 0; j < size; ++j) {
      for (int64_t i = start[j]; i < end[j]; ++i) {
        T& weight = weights[j * span + i - start[j]];
        if (low[i] == j) weight += low_weight[i];
        if (high[i] == j && high[i] != low[i]) weight += high_weight[i];
      }
      if (end[j] == 0) start[j] = 0;
    }
    table = {size, new_size,     low.data(),    high.data(), low_weight.data(), high_weight.data(),
             span, start.data(), weights.data()};
  }
};

template <class T>
class Batch {
 public:
  Batch(const MaskLoss& loss, int threads)
      : loss_(loss),
        threads_(threads),
        horizontal_(loss.masks.width, loss.segments.width),
        vertical_(loss.masks.height, loss.segments.height) {
    const Masks& masks = loss.masks;
    find_rows();
    if (masks.features != nullptr) gather_embeddings();
    plan_.loss = &loss;
    plan_.rows = rows_.data();
    plan_.first_row = first_row_.data();
    plan_.first_segment = first_segment_.data();
    plan_.embed = embed_.data();
    plan_.horizontal = horizontal_.table;
    plan_.vertical = vertical_.table;
    plan_.strip_rows =
        std::min(masks.height, std::max(kLeastStripRows, kStripPixels / masks.width));
    plan_.strips = (masks.height + plan_.strip_rows - 1) / plan_.strip_rows;
    const int64_t images = std::max<int64_t>(masks.images, 1);
    plan_.chunks = std::min(plan_.strips, (kTasks + images - 1) / images);
  }

  void forward() {
    std::vector<double> partial_sums(3 * rows_.size() * plan_.chunks);
    plan_.partial_sums = partial_sums.data();
    run(tasks<T>().forward, tasks<T>().forward_bytes(plan_));
    const std::vector<double> areas = segment_areas();
    T* const focal = static_cast<T*>(loss_.focal);
    T* const dice = static_cast<T*>(loss_.dice);
    T* const sums = static_cast<T*>(loss_.sums);
    for_rows([&](int64_t image, int64_t row, const MatchedRow& matched) {
      const double total = total_of(partial_sums.data(), image, row, 0);
      const double overlap = total_of(partial_sums.data(), image, row, 1);
      const double probability = total_of(partial_sums.data(), image, row, 2);
      const double area = areas[first_segment_[image] + matched.segment];
      const int64_t place = place_of(image, matched);
      focal[place] = static_cast<T>(total / fine_pixels());
      dice[place] = static_cast<T>(1 - (2 * overlap + 1) / (probability + area + 1));
      sums[3 * place] = static_cast<T>(overlap);
      sums[3 * place + 1] = static_cast<T>(probability);
      sums[3 * place + 2] = static_cast<T>(area);
    });
  }

  void backward() {
    const int64_t channels = loss_.masks.channels;
    const bool embed = loss_.masks.features != nullptr && loss_.grad_embed != nullptr;
    std::vector<T> slopes(3 * rows_.size());
    for_rows([&](int64_t image, int64_t row, const MatchedRow& matched) {
      const int64_t place = place_of(image, matched);
      const T* sums = static_cast<const T*>(loss_.sums) + 3 * place;
      const double by_dice = static_cast<const T*>(loss_.grad_dice)[place];
      const double above = 2 * static_cast<double>(sums[0]) + 1;
      const double below = static_cast<double>(sums[1]) + static_cast<double>(sums[2]) + 1;
      const double outside = above / (below * below);
      T* slope = slopes.data() + 3 * (first_row_[image] + row);
      slope[0] = static_cast<T>(static_cast<const T*>(loss_.grad_focal)[place] / fine_pixels());
      slope[1] = static_cast<T>(by_dice * outside);
      slope[2] = static_cast<T>(by_dice * (outside - 2 / below));
    });
    plan_.slopes = slopes.data();
    std::vector<T> partial_embed(embed ? rows_.size() * plan_.chunks * channels : 0);
    plan_.partial_embed = partial_embed.data();
    run(tasks<T>().backward, tasks<T>().backward_bytes(plan_));
    if (embed) sum_embed_slopes(partial_embed.data());
  }

 private:
  double fine_pixels() const {
    return static_cast<double>(loss_.segments.height) * static_cast<double>(loss_.segments.width);
  }

  int64_t place_of(int64_t image, const MatchedRow& row) const {
    const int64_t layer_image = row.layer * loss_.masks.images + image;
    return layer_image * loss_.segments.max_count + row.segment;
  }

  template <class F>
  void for_rows(F f) const {
    for (int64_t image = 0; image < loss_.masks.images; ++image) {
      for (int64_t i = first_row_[image]; i < first_row_[image + 1]; ++i) {
        f(image, i - first_row_[image], rows_[i]);
      }
    }
  }

  double total_of(const double* partial, int64_t image, int64_t row, int64_t which) const {
    const int64_t rows = first_row_[image + 1] - first_row_[image];
    const double* first = partial + 3 * (first_row_[image] * plan_.chunks + row) + which;
    double total = 0;
    for (int64_t chunk = 0; chunk < plan_.chunks; ++chunk) total += first[3 * chunk * rows];
    return total;
  }

  void find_rows() {
    const Masks& masks = loss_.masks;
    int64_t segments = 0;
    std::vector<int32_t> first_use(masks.layers * masks.queries);
    for (int64_t image = 0; image < masks.images; ++image) {
      first_row_.push_back(static_cast<int64_t>(rows_.size()));
      first_segment_.push_back(segments);
      segments += loss_.segments.counts[image];
      std::fill(first_use.begin(), first_use.end(), -1);
      for (int64_t t = 0; t < loss_.segments.counts[image]; ++t) {
        for (int64_t layer = 0; layer < masks.layers; ++layer) {
          const int64_t at = (layer * masks.images + image) * loss_.segments.max_count + t;
          const int64_t query = loss_.assignment[at];
          if (query < 0) continue;
          int32_t& first = first_use[layer * masks.queries + query];
          if (first < 0) first = static_cast<int32_t>(rows_.size() - first_row_.back());
          rows_.push_back({static_cast<int32_t>(layer), static_cast<int32_t>(query),
                           static_cast<int32_t>(t), first});
        }
      }
    }
    first_row_.push_back(static_cast<int64_t>(rows_.size()));
    first_segment_.push_back(segments);
  }

  void gather_embeddings() {
    const Masks& masks = loss_.masks;
    embed_.resize(rows_.size() * masks.channels);
    with_element(masks.embed_element, [&](auto kind) {
      for_rows([&](int64_t image, int64_t row, const MatchedRow& matched) {
        const auto* source = static_cast<const decltype(kind)*>(masks.embed) +
                             matched.layer * masks.embed_stride[0] + image * masks.embed_stride[1] +
                             matched.query * masks.embed_stride[2];
        copy_strided(source, masks.embed_stride[3], masks.channels,
                     embed_.data() + (first_row_[image] + row) * masks.channels);
      });
    });
  }

  std::vector<double> segment_areas() const {
    const Segments& segments = loss_.segments;
    const int64_t pixels = segments.height * segments.width;
    std::vector<int64_t> areas(first_segment_.back());
    const auto count_image = [&](int64_t image) {
      int64_t* mine = areas.data() + first_segment_[image];
      if (segments.label_map != nullptr) {
        const int16_t* labels = segments.label_map + image * pixels;
        for (int64_t p = 0; p < pixels; ++p) {
          if (labels[p] >= 0 && labels[p] < segments.counts[image]) ++mine[labels[p]];
        }
        return;
      }
      for (int64_t t = 0; t < segments.counts[image]; ++t) {
        const uint8_t* mask = segments.masks + (first_segment_[image] + t) * pixels;
        mine[t] = std::count_if(mask, mask + pixels, [](uint8_t inside) { return inside != 0; });
      }
    };
    for_each(loss_.masks.images, threads_, count_image);
    return {areas.begin(), areas.end()};
  }

  void sum_embed_slopes(const T* partial) const {
    const Masks& masks = loss_.masks;
    const int64_t channels = masks.channels;
    std::vector<T> totals;
    for (int64_t image = 0; image < masks.images; ++image) {
      const int64_t rows = first_row_[image + 1] - first_row_[image];
      totals.assign(rows * channels, 0);
      const T* chunk = partial + first_row_[image] * plan_.chunks * channels;
      for (int64_t c = 0; c < plan_.chunks; ++c, chunk += rows * channels) {
        for (int64_t i = 0; i < rows * channels; ++i) totals[i] += chunk[i];
      }
      for (int64_t row = rows - 1; row >= 0; --row) {
        const MatchedRow& matched = rows_[first_row_[image] + row];
        const T* mine = totals.data() + row * channels;
        if (matched.first != row) {
          T* first = totals.data() + matched.first * channels;
          for (int64_t c = 0; c < channels; ++c) first[c] += mine[c];
          continue;
        }
        const int64_t place =
            (matched.layer * masks.images + image) * masks.queries + matched.query;
        store_run(masks.embed_element, loss_.grad_embed, place * channels, channels, mine);
      }
    }
  }

  void run(void (*task)(const MaskLossPlan<T>&, int64_t, int64_t, void*), int64_t bytes) const {
    for_each(loss_.masks.images * plan_.chunks, threads_, bytes, [&](int64_t i, void* memory) {
      task(plan_, i / plan_.chunks, i % plan_.chunks, memory);
    });
  }

  const MaskLoss& loss_;
  const int threads_;
  const ResizeTable<T> horizontal_, vertical_;
  std::vector<MatchedRow> rows_;
  std::vector<int64_t> first_row_, first_segment_;
  std::vector<T> embed_;
  MaskLossPlan<T> plan_{};
};

}  // namespace

void mask_loss(const MaskLoss& loss, int threads) {
  loss.wide ? Batch<double>(loss, threads).forward() : Batch<float>(loss, threads).forward();
}

void mask_loss_backward(const MaskLoss& loss, int threads) {
  loss.wide ? Batch<double>(loss, threads).backward() : Batch<float>(loss, threads).backward();
}

}  // namespace mfk::cpu
