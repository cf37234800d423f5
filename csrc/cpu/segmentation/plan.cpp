#include "cpu/segmentation/plan.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/common/parallel.h"
#include "cpu/common/pixels.h"
#include "cpu/segmentation/kernel.h"

namespace mfk::cpu {
namespace {

// The most rows that are computed together, and the largest ring buffer of logits for them: the
// size of a typical L2 cache. With fewer rows, steps repeat more of the work that they share.
constexpr int64_t kMostRows = 16;
constexpr int64_t kRingBytes = 1 << 20;
constexpr int64_t kBandsPerThread = 16;

template <class T>
class AxisTable {
 public:
  // The table of the first `count` of `new_size` pixels.
  AxisTable(int64_t size, int64_t new_size, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const Tap<T> tap = bilinear_tap_rounded<T>(i, size, new_size);
      table_.add(tap.low, tap.high, 1 - tap.weight, tap.weight);
    }
  }

  void mirror() { table_.mirror(); }

  // The source pixels that pixels [begin, end) need.
  Span sources(int64_t begin, int64_t end) const {
    return {std::min(table_.low[begin], table_.low[end - 1]),
            std::max(table_.high[begin], table_.high[end - 1]) + 1};
  }

  Resize<T> pad() {
    table_.pad(kSlack);
    return table_.view();
  }

 private:
  ResizeTable<T> table_;
};

// Packs a left factor with the entries entry(i, k) in the layout of kernels.
template <class T, class F>
std::vector<T> pack(int64_t rows, int64_t depth, F entry) {
  std::vector<T> packed(round_up(rows, kBlock) * depth);
  for (int64_t i = 0; i < rows; ++i) {
    T* first = packed.data() + i / kBlock * kBlock * depth + i % kBlock;
    for (int64_t k = 0; k < depth; ++k) first[k * kBlock] = entry(i, k);
  }
  return packed;
}

// The queries of a view that are used, the heavy ones first.
struct Queries {
  std::vector<int32_t> indices;
  int64_t heavy;
};

template <class T>
class ViewPlanner {
 public:
  ViewPlanner(const SegmentationProblem& problem, const ViewPredictions& view, Queries queries)
      : height_(problem.height),
        queries_(std::move(queries.indices)),
        twice_(view.image_height != problem.height || view.image_width != problem.width),
        rows_(view.predictions.height, view.padded_height, view.image_height),
        columns_(view.predictions.width, view.padded_width, view.image_width),
        second_rows_(view.image_height, problem.height, problem.height),
        second_columns_(view.image_width, problem.width, problem.width) {
    if (view.flipped) (twice_ ? second_columns_ : columns_).mirror();
    const MaskPredictions& predictions = view.predictions;
    if (predictions.features != nullptr) pack_embeddings(predictions);
    int64_t most = 0, most_inputs = 0;
    for (int64_t x = 0; x < problem.width; x += kChunk) {
      Span needed{x, std::min(problem.width, x + kChunk)};
      if (twice_) {
        needed = second_columns_.sources(needed.begin, needed.end);
        input_columns_.push_back(needed);
        most_inputs = std::max(most_inputs, needed.end - needed.begin);
        // Resizing processes whole vectors.
        needed.end = std::min(needed.end + kSlack, view.image_width);
      }
      mask_columns_.push_back(columns_.sources(needed.begin, needed.end));
      most = std::max(most, mask_columns_.back().end - mask_columns_.back().begin);
    }
    plan_.predictions = &predictions;
    plan_.queries = queries_.data();
    plan_.count = static_cast<int64_t>(queries_.size());
    plan_.heavy = queries.heavy;
    plan_.embed = predictions.features == nullptr ? nullptr : embed_.data();
    plan_.twice = twice_;
    plan_.mask_columns = mask_columns_.data();
    plan_.input_columns = input_columns_.data();
    plan_.logits_stride = padded(predictions.width);
    plan_.mask_stride = padded(most);
    plan_.input_stride = padded(most_inputs);
  }

  // Sets where the queries of the view start in a panel.
  void set_offsets(int64_t heavy, int64_t light) {
    plan_.heavy_offset = heavy;
    plan_.light_offset = light;
  }

  int64_t heavy() const { return plan_.heavy; }
  int64_t light() const { return plan_.count - plan_.heavy; }

  // The rows of logits that `step` rows of the result need.
  int64_t ring(int64_t step) const {
    int64_t most = 0;
    for (int64_t y = 0; y < height_; y += step) {
      Span needed{y, std::min(height_, y + step)};
      if (twice_) needed = second_rows_.sources(needed.begin, needed.end);
      needed = rows_.sources(needed.begin, needed.end);
      most = std::max(most, needed.end - needed.begin);
    }
    return most;
  }

  int64_t row_bytes() const {
    return plan_.count * plan_.logits_stride * static_cast<int64_t>(sizeof(T));
  }

  ViewPlan<T> plan(int64_t step) {
    plan_.ring = ring(step);
    plan_.rows = rows_.pad();
    plan_.columns = columns_.pad();
    plan_.second_rows = second_rows_.pad();
    plan_.second_columns = second_columns_.pad();
    return plan_;
  }

 private:
  static int64_t padded(int64_t columns) { return round_up(columns, kSlack) + kSlack; }

  void pack_embeddings(const MaskPredictions& predictions) {
    const EmbedStride& stride = predictions.embed_stride;
    with_element(predictions.embed_element, [&](auto kind) {
      const auto* embed = static_cast<const decltype(kind)*>(predictions.embed);
      embed_ = pack<T>(
          static_cast<int64_t>(queries_.size()), predictions.channels, [&](int64_t i, int64_t c) {
            return static_cast<T>(widen(embed[queries_[i] * stride.query + c * stride.channel]));
          });
    });
  }

  const int64_t height_;
  const std::vector<int32_t> queries_;
  const bool twice_;
  AxisTable<T> rows_, columns_, second_rows_, second_columns_;
  std::vector<Span> mask_columns_, input_columns_;
  std::vector<T> embed_;
  ViewPlan<T> plan_{};
};

// The largest probability; infinity if one of them is NaN.
template <class T>
T largest(const T* probability, int64_t classes) {
  T most = 0;
  for (int64_t k = 0; k < classes; ++k) {
    if (!(probability[k] <= most)) most = probability[k];
    if (most != most) return std::numeric_limits<T>::infinity();
  }
  return most;
}

template <class T>
class SegmentationPlanner {
 public:
  // `queries`: those of each view.
  SegmentationPlanner(const SegmentationProblem& problem, std::vector<Queries> queries, int threads)
      : threads_(threads) {
    for (size_t v = 0; v < problem.views.size(); ++v) {
      views_.emplace_back(problem, problem.views[v], std::move(queries[v]));
      plan_.heavy += views_.back().heavy();
    }
    int64_t heavy = 0;
    plan_.queries = plan_.heavy;
    for (ViewPlanner<T>& view : views_) {
      view.set_offsets(heavy, plan_.queries);
      heavy += view.heavy();
      plan_.queries += view.light();
    }
    plan_.height = problem.height;
    plan_.width = problem.width;
    plan_.step = std::min(kMostRows, problem.height);
    while (plan_.step > 1 && ring_bytes(plan_.step) > kRingBytes) plan_.step /= 2;
    const int64_t share = divide_up(problem.height, threads * kBandsPerThread);
    plan_.band = round_up(share, plan_.step);
    bands_ = divide_up(problem.height, plan_.band);
    for (ViewPlanner<T>& view : views_) view_plans_.push_back(view.plan(plan_.step));
    plan_.views = view_plans_.data();
    plan_.view_count = static_cast<int64_t>(view_plans_.size());
  }

  void semantic(const SemanticProblem& problem) {
    std::vector<const T*> rows(plan_.queries);  // [K] each
    for (size_t v = 0; v < views_.size(); ++v) {
      const ViewPlan<T>& view = view_plans_[v];
      for (int64_t i = 0; i < view.count; ++i) {
        const int64_t index =
            i < view.heavy ? view.heavy_offset + i : view.light_offset + i - view.heavy;
        rows[index] =
            static_cast<const T*>(problem.probability[v]) + view.queries[i] * problem.classes;
      }
    }
    std::vector<T> weights;
    for (int64_t i = plan_.heavy; i < plan_.queries; ++i) {
      weights.push_back(largest(rows[i], problem.classes));
    }
    plan_.weights = weights.data();
    const std::vector<T> packed =
        pack<T>(problem.classes, plan_.queries, [&](int64_t k, int64_t q) { return rows[q][k]; });
    plan_.probability = packed.data();
    plan_.classes = problem.classes;
    plan_.resize_logits = problem.resize_logits;
    plan_.labels = problem.labels;
    plan_.scores = static_cast<T*>(problem.scores);
    for_bands(MFK_BEST_KERNEL(segmentation).of<T>().semantic);
  }

  void owners(const OwnersProblem& problem, const std::vector<T>& scores) {
    const int32_t* queries = view_plans_[0].queries;
    std::vector<int64_t> counts(bands_ * plan_.queries * 3);
    plan_.resize_logits = true;
    plan_.query_scores = scores.data();
    plan_.confident_only = problem.confident_only;
    plan_.owners = problem.owners;
    plan_.counts = counts.data();
    for_bands(MFK_BEST_KERNEL(segmentation).of<T>().owners);
    for (int64_t band = 0; band < bands_; ++band) {
      for (int64_t i = 0; i < plan_.queries; ++i) {
        for (int64_t k = 0; k < 3; ++k) {
          problem.counts[3 * queries[i] + k] += counts[(band * plan_.queries + i) * 3 + k];
        }
      }
    }
  }

 private:
  int64_t ring_bytes(int64_t step) const {
    int64_t total = 0;
    for (const ViewPlanner<T>& view : views_) total += view.ring(step) * view.row_bytes();
    return total;
  }

  void for_bands(void (*run)(const SegmentationPlan<T>&, int64_t, void*)) const {
    for_each(bands_, threads_, MFK_BEST_KERNEL(segmentation).of<T>().bytes(plan_),
             [&](int64_t band, void* memory) { run(plan_, band, memory); });
  }

  const int threads_;
  std::deque<ViewPlanner<T>> views_;
  std::vector<ViewPlan<T>> view_plans_;
  SegmentationPlan<T> plan_{};
  int64_t bands_;
};

// The light queries are those with the smallest weights, as many as add up to at most kLight. With
// a trained model, this is less than the lead of the best class of most pixels.
constexpr double kLight = 0.5;

template <class T>
std::vector<Queries> split_queries(const SemanticProblem& problem) {
  std::vector<std::vector<T>> weights;
  std::vector<T> sorted;
  for (size_t v = 0; v < problem.views.size(); ++v) {
    weights.emplace_back();
    const T* probability = static_cast<const T*>(problem.probability[v]);
    for (int64_t q = 0; q < problem.views[v].predictions.queries; ++q) {
      weights[v].push_back(largest(probability + q * problem.classes, problem.classes));
    }
    sorted.insert(sorted.end(), weights[v].begin(), weights[v].end());
  }
  std::sort(sorted.begin(), sorted.end());
  double total = 0;
  size_t light = 0;
  while (light < sorted.size() && (total += sorted[light]) <= kLight) ++light;
  // If few queries are light, skipping them does not pay.
  const T limit = 2 * light < sorted.size() || light == sorted.size() ? T{0} : sorted[light];
  std::vector<Queries> queries;
  for (const std::vector<T>& own : weights) {
    Queries of_view{std::vector<int32_t>(own.size()), 0};
    std::iota(of_view.indices.begin(), of_view.indices.end(), 0);
    const auto end = std::stable_partition(of_view.indices.begin(), of_view.indices.end(),
                                           [&](int32_t q) { return own[q] >= limit; });
    of_view.heavy = end - of_view.indices.begin();
    queries.push_back(std::move(of_view));
  }
  return queries;
}

template <class T>
void run_semantic(const SemanticProblem& problem, int threads) {
  SegmentationPlanner<T>(problem, split_queries<T>(problem), threads).semantic(problem);
}

template <class T>
void run_owners(const OwnersProblem& problem, int threads) {
  const int64_t count = problem.views[0].predictions.queries;
  std::vector<int32_t> kept;
  std::vector<T> scores;
  for (int64_t q = 0; q < count; ++q) {
    const T score = static_cast<const T*>(problem.scores)[q];
    if (!(score >= 0)) continue;
    kept.push_back(static_cast<int32_t>(q));
    scores.push_back(score);
  }
  std::fill_n(problem.counts, 3 * count, 0);
  if (kept.empty()) {
    std::fill_n(problem.owners, problem.height * problem.width, -1);
    return;
  }
  const int64_t heavy = static_cast<int64_t>(kept.size());
  SegmentationPlanner<T>(problem, {{std::move(kept), heavy}}, threads).owners(problem, scores);
}

}  // namespace

void semantic_segmentation(const SemanticProblem& problem, int threads) {
  problem.is_double ? run_semantic<double>(problem, threads)
                    : run_semantic<float>(problem, threads);
}

void panoptic_owners(const OwnersProblem& problem, int threads) {
  problem.is_double ? run_owners<double>(problem, threads) : run_owners<float>(problem, threads);
}

}  // namespace mfk::cpu
