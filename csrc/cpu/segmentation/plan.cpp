#include "cpu/segmentation/plan.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/common/parallel.h"
#include "cpu/common/pixels.h"
#include "cpu/segmentation/kernel.h"

namespace mfk::cpu {
namespace {

template <class T>
const SegmentationTasks<T>& tasks();
template <>
const SegmentationTasks<float>& tasks() {
  return MFK_BEST_KERNEL(segmentation).narrow;
}
template <>
const SegmentationTasks<double>& tasks() {
  return MFK_BEST_KERNEL(segmentation).wide;
}

// The most rows that are made together, and the logits that these may need: a usual second-level
// cache. Fewer rows repeat more of what two steps share.
constexpr int64_t kMostRows = 16;
constexpr int64_t kRingBytes = 1 << 20;
constexpr int64_t kBandsPerThread = 16;

template <class T>
struct ResampleTable {
  std::vector<int32_t> low, high;
  std::vector<T> low_weight, high_weight;

  // The first `count` of `new_size` entries.
  ResampleTable(int64_t size, int64_t new_size, int64_t count) {
    // In the type of the result and rounded once, like torch.nn.functional.interpolate: in fp32 this
    // decides over the fourth digit of a weight in a large image.
    const T scale = static_cast<T>(size) / static_cast<T>(new_size), half = static_cast<T>(0.5);
    for (int64_t i = 0; i < count; ++i) {
      const T source = std::max(std::fma(scale, static_cast<T>(i) + half, -half), T{0});
      const int32_t first = static_cast<int32_t>(std::min(static_cast<int64_t>(source), size - 1));
      const T weight = std::min(source - static_cast<T>(first), T{1});
      low.push_back(first);
      high.push_back(first + (first + 1 < size));
      low_weight.push_back(1 - weight);
      high_weight.push_back(weight);
    }
  }

  void mirror() {
    std::reverse(low.begin(), low.end());
    std::reverse(high.begin(), high.end());
    std::reverse(low_weight.begin(), low_weight.end());
    std::reverse(high_weight.begin(), high_weight.end());
  }

  // What [begin, end) needs.
  Span sources(int64_t begin, int64_t end) const {
    return {std::min(low[begin], low[end - 1]), std::max(high[begin], high[end - 1]) + 1};
  }

  Resample<T> pad() {
    for (std::vector<int32_t>* entries : {&low, &high}) {
      entries->resize(entries->size() + kSlack, entries->back());
    }
    for (std::vector<T>* weights : {&low_weight, &high_weight}) {
      weights->resize(weights->size() + kSlack, weights->back());
    }
    return {low.data(), high.data(), low_weight.data(), high_weight.data()};
  }
};

// entry(i, k) of a left factor, as kernels take it.
template <class T, class F>
std::vector<T> pack(int64_t rows, int64_t depth, F entry) {
  std::vector<T> packed((rows + kBlock - 1) / kBlock * kBlock * depth);
  for (int64_t i = 0; i < rows; ++i) {
    T* first = packed.data() + i / kBlock * kBlock * depth + i % kBlock;
    for (int64_t k = 0; k < depth; ++k) first[k * kBlock] = entry(i, k);
  }
  return packed;
}

// The queries of a view that take part, the live ones first.
struct Queries {
  std::vector<int32_t> indices;
  int64_t live;
};

template <class T>
class View {
 public:
  View(const Segmentation& task, const SegmentationView& view, Queries queries)
      : height_(task.height),
        queries_(std::move(queries.indices)),
        twice_(view.image_height != task.height || view.image_width != task.width),
        rows_(view.masks.height, view.input_height, view.image_height),
        columns_(view.masks.width, view.input_width, view.image_width),
        second_rows_(view.image_height, task.height, task.height),
        second_columns_(view.image_width, task.width, task.width) {
    if (view.flipped) (twice_ ? second_columns_ : columns_).mirror();
    const Masks& masks = view.masks;
    if (masks.features != nullptr) pack_embeddings(masks);
    int64_t most = 0, most_inputs = 0;
    for (int64_t x = 0; x < task.width; x += kChunk) {
      Span needed{x, std::min(task.width, x + kChunk)};
      if (twice_) {
        needed = second_columns_.sources(needed.begin, needed.end);
        input_columns_.push_back(needed);
        most_inputs = std::max(most_inputs, needed.end - needed.begin);
        // Whole vectors are resized.
        needed.end = std::min(needed.end + kSlack, view.image_width);
      }
      mask_columns_.push_back(columns_.sources(needed.begin, needed.end));
      most = std::max(most, mask_columns_.back().end - mask_columns_.back().begin);
    }
    plan_.masks = &masks;
    plan_.queries = queries_.data();
    plan_.count = static_cast<int64_t>(queries_.size());
    plan_.live = queries.live;
    plan_.embed = masks.features == nullptr ? nullptr : embed_.data();
    plan_.twice = twice_;
    plan_.mask_columns = mask_columns_.data();
    plan_.input_columns = input_columns_.data();
    plan_.logits_stride = padded(masks.width);
    plan_.mask_stride = padded(most);
    plan_.input_stride = padded(most_inputs);
  }

  // Where its queries come in a panel.
  void place(int64_t live, int64_t rest) {
    plan_.live_place = live;
    plan_.rest_place = rest;
  }

  int64_t live() const { return plan_.live; }
  int64_t rest() const { return plan_.count - plan_.live; }

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
  static int64_t padded(int64_t columns) {
    return (columns + kSlack - 1) / kSlack * kSlack + kSlack;
  }

  void pack_embeddings(const Masks& masks) {
    const int64_t* stride = masks.embed_stride;
    with_element(masks.embed_element, [&](auto kind) {
      const auto* embed = static_cast<const decltype(kind)*>(masks.embed);
      embed_ =
          pack<T>(static_cast<int64_t>(queries_.size()), masks.channels, [&](int64_t i, int64_t c) {
            return static_cast<T>(widen(embed[queries_[i] * stride[2] + c * stride[3]]));
          });
    });
  }

  const int64_t height_;
  const std::vector<int32_t> queries_;
  const bool twice_;
  ResampleTable<T> rows_, columns_, second_rows_, second_columns_;
  std::vector<Span> mask_columns_, input_columns_;
  std::vector<T> embed_;
  ViewPlan<T> plan_{};
};

// Infinity if one of them is NaN.
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
class Run {
 public:
  // `queries` of each view.
  Run(const Segmentation& task, std::vector<Queries> queries, int threads) : threads_(threads) {
    for (size_t v = 0; v < task.views.size(); ++v) {
      views_.emplace_back(task, task.views[v], std::move(queries[v]));
      plan_.live += views_.back().live();
    }
    int64_t live = 0;
    plan_.queries = plan_.live;
    for (View<T>& view : views_) {
      view.place(live, plan_.queries);
      live += view.live();
      plan_.queries += view.rest();
    }
    plan_.height = task.height;
    plan_.width = task.width;
    plan_.step = std::min(kMostRows, task.height);
    while (plan_.step > 1 && ring_bytes(plan_.step) > kRingBytes) plan_.step /= 2;
    const int64_t share =
        (task.height + threads * kBandsPerThread - 1) / (threads * kBandsPerThread);
    plan_.band = (share + plan_.step - 1) / plan_.step * plan_.step;
    bands_ = (task.height + plan_.band - 1) / plan_.band;
    for (View<T>& view : views_) view_plans_.push_back(view.plan(plan_.step));
    plan_.views = view_plans_.data();
    plan_.view_count = static_cast<int64_t>(view_plans_.size());
  }

  void semantic(const SemanticSegmentation& task) {
    std::vector<const T*> rows(plan_.queries);  // [K] each
    for (size_t v = 0; v < views_.size(); ++v) {
      const ViewPlan<T>& view = view_plans_[v];
      for (int64_t i = 0; i < view.count; ++i) {
        const int64_t place = i < view.live ? view.live_place + i : view.rest_place + i - view.live;
        rows[place] = static_cast<const T*>(task.probability[v]) + view.queries[i] * task.classes;
      }
    }
    std::vector<T> weights;
    for (int64_t i = plan_.live; i < plan_.queries; ++i) {
      weights.push_back(largest(rows[i], task.classes));
    }
    plan_.weights = weights.data();
    const std::vector<T> packed =
        pack<T>(task.classes, plan_.queries, [&](int64_t k, int64_t q) { return rows[q][k]; });
    plan_.probability = packed.data();
    plan_.classes = task.classes;
    plan_.resize_logits = task.resize_logits;
    plan_.labels = task.labels;
    plan_.scores = static_cast<T*>(task.scores);
    for_bands(tasks<T>().semantic);
  }

  void owners(const PanopticOwners& task, const std::vector<T>& chances) {
    const int32_t* queries = view_plans_[0].queries;
    std::vector<int64_t> counts(bands_ * plan_.queries * 3);
    plan_.resize_logits = true;
    plan_.chances = chances.data();
    plan_.confident_only = task.confident_only;
    plan_.owners = task.owners;
    plan_.counts = counts.data();
    for_bands(tasks<T>().owners);
    for (int64_t band = 0; band < bands_; ++band) {
      for (int64_t i = 0; i < plan_.queries; ++i) {
        for (int64_t k = 0; k < 3; ++k) {
          task.counts[3 * queries[i] + k] += counts[(band * plan_.queries + i) * 3 + k];
        }
      }
    }
  }

 private:
  int64_t ring_bytes(int64_t step) const {
    int64_t total = 0;
    for (const View<T>& view : views_) total += view.ring(step) * view.row_bytes();
    return total;
  }

  void for_bands(void (*run)(const SegmentationPlan<T>&, int64_t, void*)) const {
    for_each(bands_, threads_, tasks<T>().bytes(plan_),
             [&](int64_t band, void* memory) { run(plan_, band, memory); });
  }

  const int threads_;
  std::deque<View<T>> views_;
  std::vector<ViewPlan<T>> view_plans_;
  SegmentationPlan<T> plan_{};
  int64_t bands_;
};

// The rest are the queries of least weight, as many as can come to kRest together: less than the lead
// of the best class of most pixels, once a model is trained.
constexpr double kRest = 0.5;

template <class T>
std::vector<Queries> live_queries(const SemanticSegmentation& task) {
  std::vector<std::vector<T>> weights;
  std::vector<T> sorted;
  for (size_t v = 0; v < task.views.size(); ++v) {
    weights.emplace_back();
    const T* probability = static_cast<const T*>(task.probability[v]);
    for (int64_t q = 0; q < task.views[v].masks.queries; ++q) {
      weights[v].push_back(largest(probability + q * task.classes, task.classes));
    }
    sorted.insert(sorted.end(), weights[v].begin(), weights[v].end());
  }
  std::sort(sorted.begin(), sorted.end());
  double total = 0;
  size_t rest = 0;
  while (rest < sorted.size() && (total += sorted[rest]) <= kRest) ++rest;
  // With little to leave out, trying is not worth it.
  const T limit = 2 * rest < sorted.size() || rest == sorted.size() ? T{0} : sorted[rest];
  std::vector<Queries> queries;
  for (const std::vector<T>& own : weights) {
    Queries of_view{std::vector<int32_t>(own.size()), 0};
    std::iota(of_view.indices.begin(), of_view.indices.end(), 0);
    const auto end = std::stable_partition(of_view.indices.begin(), of_view.indices.end(),
                                           [&](int32_t q) { return own[q] >= limit; });
    of_view.live = end - of_view.indices.begin();
    queries.push_back(std::move(of_view));
  }
  return queries;
}

template <class T>
void run_semantic(const SemanticSegmentation& task, int threads) {
  Run<T>(task, live_queries<T>(task), threads).semantic(task);
}

template <class T>
void run_owners(const PanopticOwners& task, int threads) {
  const int64_t count = task.views[0].masks.queries;
  std::vector<int32_t> kept;
  std::vector<T> chances;
  for (int64_t q = 0; q < count; ++q) {
    const T score = static_cast<const T*>(task.scores)[q];
    if (!(score >= 0)) continue;
    kept.push_back(static_cast<int32_t>(q));
    chances.push_back(score);
  }
  std::fill_n(task.counts, 3 * count, 0);
  if (kept.empty()) {
    std::fill_n(task.owners, task.height * task.width, -1);
    return;
  }
  const int64_t live = static_cast<int64_t>(kept.size());
  Run<T>(task, {{std::move(kept), live}}, threads).owners(task, chances);
}

}  // namespace

void semantic_segmentation(const SemanticSegmentation& task, int threads) {
  task.wide ? run_semantic<double>(task, threads) : run_semantic<float>(task, threads);
}

void panoptic_owners(const PanopticOwners& task, int threads) {
  task.wide ? run_owners<double>(task, threads) : run_owners<float>(task, threads);
}

}  // namespace mfk::cpu
