#include "cpu/mask_loss/plan.h"

#include <algorithm>
#include <vector>

#include "core/resample.h"
#include "cpu/common/embeddings.h"
#include "cpu/common/parallel.h"
#include "cpu/mask_loss/kernel.h"

namespace mfk::cpu {
namespace {

// The low-resolution pixels of a strip and the tasks of a batch. Neither depends on the number of
// threads, because the division into partial sums affects rounding.
constexpr int64_t kStripPixels = 2048;
constexpr int64_t kLeastStripRows = 4;
constexpr int64_t kTasks = 64;
// How far vectors of full-resolution pixels may reach beyond the last one.
constexpr int64_t kPadding = 16;

template <class T>
class AdjointTable {
 public:
  AdjointTable(int64_t size, int64_t new_size) : start_(size, static_cast<int32_t>(new_size)) {
    std::vector<int64_t> end(size, 0);
    for (int64_t i = 0; i < new_size; ++i) {
      const Tap<double> tap = bilinear_tap(i, size, new_size);
      const bool two = tap.high != tap.low;
      table_.add(tap.low, tap.high, static_cast<T>(two ? 1 - tap.weight : 1),
                 static_cast<T>(two ? tap.weight : 0));
      for (const int64_t source : {tap.low, tap.high}) {
        start_[source] = std::min(start_[source], static_cast<int32_t>(i));
        end[source] = i + 1;
      }
    }
    int64_t span = 0;
    for (int64_t j = 0; j < size; ++j) span = std::max(span, end[j] - start_[j]);
    weights_.assign(size * span, 0);
    for (int64_t j = 0; j < size; ++j) {
      for (int64_t i = start_[j]; i < end[j]; ++i) {
        T& weight = weights_[j * span + i - start_[j]];
        if (table_.low[i] == j) weight += table_.low_weight[i];
        if (table_.high[i] == j && table_.high[i] != table_.low[i]) weight += table_.high_weight[i];
      }
      if (end[j] == 0) start_[j] = 0;
    }
    table_.pad(kPadding);
    static_cast<Resize<T>&>(resize_) = table_.view();
    resize_.size = size;
    resize_.new_size = new_size;
    resize_.span = span;
    resize_.start = start_.data();
    resize_.weights = weights_.data();
  }

  const AxisResize<T>& resize() const { return resize_; }

 private:
  ResizeTable<T> table_;
  std::vector<int32_t> start_;
  std::vector<T> weights_;
  AxisResize<T> resize_;
};

template <class T>
class MaskLossPlanner {
 public:
  MaskLossPlanner(const MaskLossProblem& problem, int threads)
      : problem_(problem),
        threads_(threads),
        horizontal_(problem.predictions.width, problem.segments.width),
        vertical_(problem.predictions.height, problem.segments.height) {
    const MaskPredictions& predictions = problem.predictions;
    find_rows();
    if (predictions.features != nullptr) gather_embeddings();
    plan_.problem = &problem;
    plan_.rows = rows_.data();
    plan_.first_row = first_row_.data();
    plan_.first_segment = first_segment_.data();
    plan_.embed = embed_.data();
    plan_.horizontal = horizontal_.resize();
    plan_.vertical = vertical_.resize();
    plan_.strip_rows =
        std::min(predictions.height, std::max(kLeastStripRows, kStripPixels / predictions.width));
    plan_.strips = divide_up(predictions.height, plan_.strip_rows);
    const int64_t images = std::max<int64_t>(predictions.images, 1);
    plan_.chunks = std::min(plan_.strips, divide_up(kTasks, images));
  }

  void forward() {
    std::vector<double> partial_sums(3 * rows_.size() * plan_.chunks);
    plan_.partial_sums = partial_sums.data();
    for_each(tasks(), threads_, kernel_.forward_bytes(plan_), [&](int64_t i, void* memory) {
      kernel_.forward(plan_, i / plan_.chunks, i % plan_.chunks, memory);
    });
    const std::vector<double> areas = segment_areas();
    T* const focal = static_cast<T*>(problem_.focal);
    T* const dice = static_cast<T*>(problem_.dice);
    T* const sums = static_cast<T*>(problem_.sums);
    for_rows([&](int64_t image, int64_t row, const MatchedRow& matched) {
      const double total = total_of(partial_sums.data(), image, row, 0);
      const double overlap = total_of(partial_sums.data(), image, row, 1);
      const double probability = total_of(partial_sums.data(), image, row, 2);
      const double area = areas[first_segment_[image] + matched.segment];
      const int64_t index = index_of(image, matched);
      focal[index] = static_cast<T>(total / full_pixels());
      dice[index] = static_cast<T>(1 - (2 * overlap + 1) / (probability + area + 1));
      sums[3 * index] = static_cast<T>(overlap);
      sums[3 * index + 1] = static_cast<T>(probability);
      sums[3 * index + 2] = static_cast<T>(area);
    });
  }

  void backward() {
    const int64_t channels = problem_.predictions.channels;
    const bool embed = problem_.predictions.features != nullptr && problem_.grad_embed != nullptr;
    std::vector<GradFactors<T>> grad_factors(rows_.size());
    for_rows([&](int64_t image, int64_t row, const MatchedRow& matched) {
      const int64_t index = index_of(image, matched);
      const T* sums = static_cast<const T*>(problem_.sums) + 3 * index;
      const double grad_dice = static_cast<const T*>(problem_.grad_dice)[index];
      const double above = 2 * static_cast<double>(sums[0]) + 1;
      const double below = static_cast<double>(sums[1]) + static_cast<double>(sums[2]) + 1;
      const double outside = above / (below * below);
      grad_factors[first_row_[image] + row] = {
          .focal =
              static_cast<T>(static_cast<const T*>(problem_.grad_focal)[index] / full_pixels()),
          .dice_outside = static_cast<T>(grad_dice * outside),
          .dice_inside = static_cast<T>(grad_dice * (outside - 2 / below))};
    });
    plan_.grad_factors = grad_factors.data();
    std::vector<T> partial_embed(embed ? rows_.size() * plan_.chunks * channels : 0);
    plan_.partial_embed = partial_embed.data();
    for_each(tasks(), threads_, kernel_.backward_bytes(plan_), [&](int64_t i, void* memory) {
      kernel_.backward(plan_, i / plan_.chunks, i % plan_.chunks, memory);
    });
    if (embed) sum_grad_embed(partial_embed.data());
  }

 private:
  int64_t tasks() const { return problem_.predictions.images * plan_.chunks; }

  double full_pixels() const {
    return static_cast<double>(problem_.segments.height) *
           static_cast<double>(problem_.segments.width);
  }

  int64_t index_of(int64_t image, const MatchedRow& row) const {
    const int64_t layer_image = row.layer * problem_.predictions.images + image;
    return layer_image * problem_.segments.max_count + row.segment;
  }

  template <class F>
  void for_rows(F f) const {
    for (int64_t image = 0; image < problem_.predictions.images; ++image) {
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
    const MaskPredictions& predictions = problem_.predictions;
    int64_t segments = 0;
    std::vector<int32_t> first_use(predictions.layers * predictions.queries);
    for (int64_t image = 0; image < predictions.images; ++image) {
      first_row_.push_back(static_cast<int64_t>(rows_.size()));
      first_segment_.push_back(segments);
      segments += problem_.segments.counts[image];
      std::fill(first_use.begin(), first_use.end(), -1);
      for (int64_t t = 0; t < problem_.segments.counts[image]; ++t) {
        for (int64_t layer = 0; layer < predictions.layers; ++layer) {
          const int64_t at = (layer * predictions.images + image) * problem_.segments.max_count + t;
          const int64_t query = problem_.assignment[at];
          if (query < 0) continue;
          int32_t& first = first_use[layer * predictions.queries + query];
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
    const int64_t channels = problem_.predictions.channels;
    embed_.resize(rows_.size() * channels);
    for_rows([&](int64_t image, int64_t row, const MatchedRow& matched) {
      copy_embedding(problem_.predictions, matched.layer, image, matched.query,
                     embed_.data() + (first_row_[image] + row) * channels);
    });
  }

  std::vector<double> segment_areas() const {
    const Segments& segments = problem_.segments;
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
    for_each(problem_.predictions.images, threads_, count_image);
    return {areas.begin(), areas.end()};
  }

  void sum_grad_embed(const T* partial) const {
    const MaskPredictions& predictions = problem_.predictions;
    const int64_t channels = predictions.channels;
    std::vector<T> totals;
    for (int64_t image = 0; image < predictions.images; ++image) {
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
        const int64_t index =
            (matched.layer * predictions.images + image) * predictions.queries + matched.query;
        store_run(predictions.embed_element, problem_.grad_embed, index * channels, channels, mine);
      }
    }
  }

  const MaskLossKernel<T>& kernel_ = MFK_BEST_KERNEL(mask_loss).of<T>();
  const MaskLossProblem& problem_;
  const int threads_;
  const AdjointTable<T> horizontal_, vertical_;
  std::vector<MatchedRow> rows_;
  std::vector<int64_t> first_row_, first_segment_;
  std::vector<T> embed_;
  MaskLossPlan<T> plan_{};
};

}  // namespace

void mask_loss(const MaskLossProblem& problem, int threads) {
  problem.is_double ? MaskLossPlanner<double>(problem, threads).forward()
                    : MaskLossPlanner<float>(problem, threads).forward();
}

void mask_loss_backward(const MaskLossProblem& problem, int threads) {
  problem.is_double ? MaskLossPlanner<double>(problem, threads).backward()
                    : MaskLossPlanner<float>(problem, threads).backward();
}

}  // namespace mfk::cpu
