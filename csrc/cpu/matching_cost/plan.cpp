#include "cpu/matching_cost/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "core/resample.h"
#include "cpu/common/embeddings.h"
#include "cpu/common/parallel.h"
#include "cpu/matching_cost/kernel.h"

namespace mfk::cpu {
namespace {

// The feature entries of a tile (half of a typical L2 cache), its most pixels, and the tasks of a
// batch. None depends on the number of threads, because the division into partial sums affects
// rounding.
constexpr int64_t kTileEntries = 1 << 17;
constexpr int64_t kMostTilePixels = 1024;
constexpr int64_t kTasks = 64;

// The pixels of an image in the order of their segments.
struct Image {
  std::vector<int32_t> pixels, first_piece, first_pixel;
  std::vector<Piece> pieces;
  std::vector<int64_t> areas;  // of the segments
  std::vector<uint8_t> masks;
  std::vector<PieceSums> sums;
  std::vector<double> mask_sums;
};

template <class T>
class MatchingCostPlanner {
 public:
  MatchingCostPlanner(const MatchingCostProblem& problem, int threads)
      : problem_(problem), predictions_(problem.predictions), threads_(threads) {
    queries_ = predictions_.layers * predictions_.queries;
    const int64_t entries = kTileEntries / std::max<int64_t>(predictions_.channels, 1);
    plan_.tile =
        std::clamp(entries / kChunkPadding * kChunkPadding, kChunkPadding, kMostTilePixels);
    const int64_t pixels = predictions_.height * predictions_.width;
    const int64_t tiles = std::max<int64_t>(divide_up(pixels, plan_.tile), 1);
    const int64_t images = std::max<int64_t>(predictions_.images, 1);
    chunks_ = std::min(tiles, divide_up(kTasks, images));
    int64_t segments = 0;
    for (int64_t b = 0; b < predictions_.images; ++b) {
      first_segment_.push_back(segments);
      segments += problem.segments.counts[b];
    }
  }

  void run() {
    images_.resize(predictions_.images);
    for_each(predictions_.images, threads_, [&](int64_t b) { sort_pixels(b); });
    std::optional<AllEmbeddings<T>> embed;
    if (predictions_.features != nullptr) plan_.embed = embed.emplace(predictions_).get();
    std::vector<PixelOrder> orders;
    for (Image& image : images_) {
      image.sums.resize(image.pieces.size() * queries_);
      const int64_t segments = static_cast<int64_t>(image.areas.size());
      image.mask_sums.resize(image.masks.empty() ? 0 : chunks_ * queries_ * 3 * segments);
      orders.push_back({
          .padded = static_cast<int64_t>(image.pixels.size()),
          .pixels = image.pixels.data(),
          .pieces = image.pieces.data(),
          .first_piece = image.first_piece.data(),
          .first_pixel = image.first_pixel.data(),
          .masks = image.masks.empty() ? nullptr : image.masks.data(),
          .sums = image.sums.data(),
          .mask_sums = image.mask_sums.data(),
      });
    }
    plan_.problem = &problem_;
    plan_.orders = orders.data();
    const MatchingCostKernel<T>& kernel = MFK_BEST_KERNEL(matching_cost).of<T>();
    for_each(predictions_.images * chunks_, threads_, kernel.bytes(plan_),
             [&](int64_t i, void* memory) { kernel.run(plan_, i / chunks_, i % chunks_, memory); });
    for_each(predictions_.images * predictions_.layers, threads_,
             [&](int64_t i) { write_costs(i / predictions_.layers, i % predictions_.layers); });
  }

 private:
  // The segment of every low-resolution pixel. If masks overlap, they are copied to `image.masks`.
  std::vector<int32_t> subsample(int64_t b, Image& image) const {
    const Segments& segments = problem_.segments;
    const int64_t count = segments.counts[b], pixels = predictions_.height * predictions_.width;
    std::vector<int64_t> sources;
    sources.reserve(pixels);
    for (int64_t y = 0; y < predictions_.height; ++y) {
      const int64_t row = nearest_source(y, segments.height, predictions_.height) * segments.width;
      for (int64_t x = 0; x < predictions_.width; ++x) {
        sources.push_back(row + nearest_source(x, segments.width, predictions_.width));
      }
    }
    const int64_t full_pixels = segments.height * segments.width;
    std::vector<int32_t> labels(pixels, -1);
    image.areas.assign(count, 0);
    if (segments.label_map != nullptr) {
      const int16_t* map = segments.label_map + b * full_pixels;
      for (int64_t p = 0; p < pixels; ++p) {
        const int32_t label = map[sources[p]];
        if (label < 0 || label >= count) continue;
        labels[p] = label;
        ++image.areas[label];
      }
      return labels;
    }
    bool overlap = false;
    const uint8_t* masks = segments.masks + first_segment_[b] * full_pixels;
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t p = 0; p < pixels; ++p) {
        if (masks[t * full_pixels + sources[p]] == 0) continue;
        overlap = overlap || labels[p] >= 0;
        labels[p] = static_cast<int32_t>(t);
        ++image.areas[t];
      }
    }
    if (!overlap) return labels;
    std::fill(labels.begin(), labels.end(), -1);
    const int64_t padded = round_up(pixels, kChunkPadding);
    image.masks.assign(count * padded, 0);
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t p = 0; p < pixels; ++p) {
        image.masks[t * padded + p] = masks[t * full_pixels + sources[p]];
      }
    }
    return labels;
  }

  void sort_pixels(int64_t b) {
    Image& image = images_[b];
    const std::vector<int32_t> labels = subsample(b, image);
    // Counting sort by segment; void pixels come first.
    const int64_t count = problem_.segments.counts[b];
    std::vector<int32_t> sizes(count + 1, 0), next(count + 1);
    for (const int32_t label : labels) ++sizes[label + 1];
    int64_t padded = 0;
    std::vector<Piece> runs;
    for (int64_t s = 0; s <= count; ++s) {
      if (sizes[s] == 0) continue;
      const int32_t begin = static_cast<int32_t>(padded);
      next[s] = begin;
      padded += round_up(sizes[s], kSegmentPadding);
      runs.push_back(
          {static_cast<int32_t>(s - 1), begin, static_cast<int32_t>(padded), begin + sizes[s]});
    }
    padded = round_up(padded, kChunkPadding);
    runs.back().end = static_cast<int32_t>(padded);
    image.pixels.assign(padded, -1);
    for (size_t p = 0; p < labels.size(); ++p) {
      image.pixels[next[labels[p] + 1]++] = static_cast<int32_t>(p);
    }
    const int64_t units = padded / kChunkPadding;
    size_t run = 0;
    for (int64_t chunk = 0; chunk <= chunks_; ++chunk) {
      image.first_piece.push_back(static_cast<int32_t>(image.pieces.size()));
      image.first_pixel.push_back(static_cast<int32_t>(chunk * units / chunks_ * kChunkPadding));
      if (chunk == chunks_) break;
      const int32_t begin = image.first_pixel.back();
      const int32_t end = static_cast<int32_t>((chunk + 1) * units / chunks_ * kChunkPadding);
      while (run < runs.size() && runs[run].end <= begin) ++run;
      for (size_t r = run; r < runs.size() && runs[r].begin < end; ++r) {
        image.pieces.push_back({runs[r].segment, std::max(runs[r].begin, begin),
                                std::min(runs[r].end, end), std::min(runs[r].valid_end, end)});
      }
    }
  }

  void write_costs(int64_t b, int64_t layer) const {
    const Image& image = images_[b];
    const int64_t most = problem_.segments.max_count;
    const int64_t count = static_cast<int64_t>(image.areas.size());
    std::vector<PieceSums> sums(count);
    std::vector<double> probability(problem_.classes);
    for (int64_t query = 0; query < predictions_.queries; ++query) {
      const int64_t row = layer * predictions_.queries + query;
      T* result = static_cast<T*>(problem_.cost) +
                  ((layer * predictions_.images + b) * predictions_.queries + query) * most;
      std::fill_n(result, most, T{0});
      if (count == 0) continue;
      std::fill(sums.begin(), sums.end(), PieceSums{0, 0, 0});
      PieceSums elsewhere{0, 0, 0};
      double all_probability = 0;
      for (size_t i = 0; i < image.pieces.size(); ++i) {
        const PieceSums& part = image.sums[i * queries_ + row];
        all_probability += part.probability;
        add(image.pieces[i].segment >= 0 ? sums[image.pieces[i].segment] : elsewhere, part);
      }
      if (image.masks.empty()) {
        use_negatives_of_others(elsewhere.negative, sums);
      } else {
        add_masks(image, row, sums);
      }
      softmax_classes(layer, b, query, probability);
      for (int64_t t = 0; t < count; ++t) {
        const double weight_inside = problem_.alpha >= 0 ? problem_.alpha : 1;
        const double weight_outside = problem_.alpha >= 0 ? 1 - problem_.alpha : 1;
        const double pixels =
            static_cast<double>(predictions_.height) * static_cast<double>(predictions_.width);
        const double focal =
            (weight_inside * sums[t].positive + weight_outside * sums[t].negative) / pixels;
        const double area = static_cast<double>(image.areas[t]);
        const double dice = 1 - (2 * sums[t].probability + 1) / (all_probability + area + 1);
        const int64_t label = problem_.labels[first_segment_[b] + t];
        const double class_probability = label >= 0 && label < problem_.classes - 1
                                             ? probability[label]
                                             : std::numeric_limits<double>::quiet_NaN();
        result[t] =
            static_cast<T>(problem_.mask_weight * focal -
                           problem_.class_weight * class_probability + problem_.dice_weight * dice);
      }
    }
  }

  static void add(PieceSums& total, const PieceSums& part) {
    total.positive += part.positive;
    total.negative += part.negative;
    total.probability += part.probability;
  }

  // Replaces the negative sum of each segment by that of all other segments and of void pixels.
  // Prefix and suffix sums avoid differences, which would cancel.
  static void use_negatives_of_others(double of_none, std::vector<PieceSums>& sums) {
    double after = 0;
    std::vector<double> behind(sums.size());
    for (size_t t = sums.size(); t-- > 0;) {
      behind[t] = after;
      after += sums[t].negative;
    }
    double before = of_none;
    for (size_t t = 0; t < sums.size(); ++t) {
      const double own = sums[t].negative;
      sums[t].negative = before + behind[t];
      before += own;
    }
  }

  void add_masks(const Image& image, int64_t row, std::vector<PieceSums>& sums) const {
    const int64_t count = static_cast<int64_t>(sums.size());
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const double* part = image.mask_sums.data() + (chunk * queries_ + row) * 3 * count;
      for (int64_t t = 0; t < count; ++t) {
        add(sums[t], {part[t], part[count + t], part[2 * count + t]});
      }
    }
  }

  void softmax_classes(int64_t layer, int64_t b, int64_t query,
                       std::vector<double>& probability) const {
    with_element(problem_.class_element, [&](auto kind) {
      const ClassStride& stride = problem_.class_stride;
      copy_strided(static_cast<const decltype(kind)*>(problem_.class_logits) +
                       layer * stride.layer + b * stride.image + query * stride.query,
                   stride.class_index, problem_.classes, probability.data());
    });
    const double most = *std::max_element(probability.begin(), probability.end());
    double total = 0;
    for (double& value : probability) total += value = std::exp(value - most);
    for (double& value : probability) value /= total;
  }

  const MatchingCostProblem& problem_;
  const MaskPredictions& predictions_;
  const int threads_;
  int64_t queries_, chunks_;
  std::vector<int64_t> first_segment_;
  std::vector<Image> images_;
  MatchingCostPlan<T> plan_{};
};

}  // namespace

void matching_cost(const MatchingCostProblem& problem, int threads) {
  problem.is_double ? MatchingCostPlanner<double>(problem, threads).run()
                    : MatchingCostPlanner<float>(problem, threads).run();
}

}  // namespace mfk::cpu
