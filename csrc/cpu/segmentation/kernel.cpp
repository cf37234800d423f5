// Computes a band of rows of the result on one thread. The build compiles this file once for each
// instruction set, with MFK_KERNEL as the name of its only public object.
#include "cpu/segmentation/kernel.h"

#include <limits>
#include <new>

#include "cpu/common/memory.h"
#include "cpu/segmentation/view_rows.h"

namespace mfk::cpu {
namespace {

// The best class of each pixel. If the lead of the best class among the heavy queries is larger
// than the light queries could make up for, the latter are skipped; the labels are exactly the
// same.
template <class T>
class Semantic {
  using V = VectorFor<T>;
  using Index = IndexFor<T>;
  static constexpr int kWidth = VectorOf<T>::kWidth;

 public:
  Semantic(const SegmentationPlan<T>& plan, int64_t, Arena& arena)
      : plan_(plan), sums_(arena.take<T>(kTileRows * kPanel<T>)) {}

  void start() {}
  void finish() {}

  // Processes `count` pixels of a row, the first of which has the index `pixel` in the result.
  void take(const T* panel, int64_t pixel, int64_t count) {
    const bool can_skip = plan_.heavy < plan_.queries && plan_.scores == nullptr;
    // An attempt takes time; stop trying if it fails too often.
    if (can_skip && (tried_ < kTrials || 2 * failed_ < tried_)) {
      ++tried_;
      score<true>(panel, plan_.heavy, pixel, count);
      if (is_certain(panel, count)) return write_labels(pixel, count);
      ++failed_;
    }
    score<false>(panel, plan_.queries, pixel, count);
    write_labels(pixel, count);
  }

 private:
  static constexpr int64_t kTrials = 16;

  // Finds the best class by the scores of the first `depth` queries.
  template <bool kSecond>
  void score(const T* panel, int64_t depth, int64_t pixel, int64_t count) {
    V best[2], second[2];
    Index labels[2] = {};
    for (int j = 0; j < 2; ++j) {
      best[j] = second[j] = broadcast(-std::numeric_limits<T>::infinity());
    }
    for (int64_t k = 0; k < plan_.classes; k += kTileRows) {
      const int64_t rows = smaller(kTileRows, plan_.classes - k);
      multiply<false>(rows, packed_rows(plan_.probability, k, plan_.queries), panel, depth, sums_,
                      kPanel<T>);
      for (int64_t i = 0; i < rows; ++i) {
        for (int j = 0; j < 2; ++j) {
          const V sum = load<V>(sums_ + i * kPanel<T> + j * kWidth);
          if (kSecond) second[j] = maximum(second[j], minimum(sum, best[j]));
          const Index better = sum > best[j];
          labels[j] = better ? Index{} + static_cast<int>(k + i) : labels[j];
          best[j] = better ? sum : best[j];
        }
      }
      if (plan_.scores == nullptr) continue;
      for (int64_t i = 0; i < rows; ++i) {
        T* scores = plan_.scores + (k + i) * plan_.height * plan_.width + pixel;
        for (int64_t x = 0; x < count; ++x) scores[x] = sums_[i * kPanel<T> + x];
      }
    }
    for (int j = 0; j < 2; ++j) {
      labels_[j] = labels[j];
      best_[j] = best[j];
      second_[j] = second[j];
    }
  }

  // Whether neither the light queries nor rounding can change the labels.
  bool is_certain(const T* panel, int64_t count) const {
    const T rounding = static_cast<T>(3 * plan_.queries) * std::numeric_limits<T>::epsilon();
    bool certain = true;
    for (int j = 0; j < 2; ++j) {
      V light{};
      for (int64_t i = plan_.heavy; i < plan_.queries; ++i) {
        const V mask = load<V>(panel + i * kPanel<T> + j * kWidth);
        light = multiply_add(broadcast(plan_.weights[i - plan_.heavy]), mask, light);
      }
      const Index leads = best_[j] - second_[j] > light + rounding * (best_[j] + light);
      for (int x = 0; x < kWidth; ++x) certain &= leads[x] != 0 || j * kWidth + x >= count;
    }
    return certain;
  }

  void write_labels(int64_t pixel, int64_t count) const {
    for (int64_t x = 0; x < count; ++x) {
      plan_.labels[pixel + x] = labels_[x / kWidth][x % kWidth];
    }
  }

  const SegmentationPlan<T>& plan_;
  T* sums_;  // [kTileRows, kPanel]
  V best_[2], second_[2];
  Index labels_[2];
  int64_t tried_ = 0, failed_ = 0;
};

// The query that owns each pixel.
template <class T>
class Owners {
  using V = VectorFor<T>;
  using Index = IndexFor<T>;
  static constexpr int kWidth = VectorOf<T>::kWidth;

 public:
  Owners(const SegmentationPlan<T>& plan, int64_t band, Arena& arena)
      : plan_(plan),
        counts_(plan.counts + band * plan.queries * 3),
        confident_(arena.take<T>(plan.queries * kWidth)) {}

  void start() {
    for (int64_t i = 0; i < 3 * plan_.queries; ++i) counts_[i] = 0;
    for (int64_t i = 0; i < plan_.queries; ++i) store(confident_ + i * kWidth, Index{});
  }

  void finish() {
    for (int64_t i = 0; i < plan_.queries; ++i) {
      const Index counts = load<Index>(confident_ + i * kWidth);
      for (int k = 0; k < kWidth; ++k) counts_[3 * i + 1] += counts[k];
    }
  }

  void take(const T* panel, int64_t pixel, int64_t count) {
    const T half = static_cast<T>(0.5);
    V best[2], probability[2] = {};
    Index owners[2], inside[2];
    for (int j = 0; j < 2; ++j) {
      best[j] = broadcast(-std::numeric_limits<T>::infinity());
      owners[j] = Index{} - 1;
      inside[j] = lane_indices<T>() + j * kWidth < static_cast<int>(count);
    }
    for (int64_t i = 0; i < plan_.queries; ++i) {
      Index confident = load<Index>(confident_ + i * kWidth);
      for (int j = 0; j < 2; ++j) {
        const V mask = load<V>(panel + i * kPanel<T> + j * kWidth);
        const V score = plan_.query_scores[i] * mask;
        const Index better = score > best[j];
        best[j] = better ? score : best[j];
        probability[j] = better ? mask : probability[j];
        owners[j] = better ? Index{} + static_cast<int>(i) : owners[j];
        confident -= (mask >= half) & inside[j];
      }
      store(confident_ + i * kWidth, confident);
    }
    for (int64_t x = 0; x < count; ++x) {
      const int64_t owner = owners[x / kWidth][x % kWidth];
      int32_t& result = plan_.owners[pixel + x];
      result = -1;
      if (owner < 0) continue;
      ++counts_[3 * owner];
      if (plan_.confident_only && !(probability[x / kWidth][x % kWidth] >= half)) continue;
      ++counts_[3 * owner + 2];
      result = plan_.views->queries[owner];
    }
  }

 private:
  const SegmentationPlan<T>& plan_;
  int64_t* counts_;  // [queries, 3]
  T* confident_;     // [queries, kWidth] integers: counts of confident pixels of this band
};

template <class T, class Result>
class BandWorker {
 public:
  BandWorker(const SegmentationPlan<T>& plan, int64_t band, void* memory)
      : plan_(plan), arena_(memory), result_(plan, band, arena_) {
    views_ = arena_.take<ViewRows<T>>(plan.view_count);
    int64_t features = 0;
    for (int64_t v = 0; v < plan.view_count; ++v) {
      const ViewPlan<T>& view = plan.views[v];
      const ViewRows<T> state(plan, view, arena_);
      if (memory != nullptr) new (views_ + v) ViewRows<T>(state);
      const int64_t entries =
          round_up(view.predictions->width, kPanel<T>) * view.predictions->channels;
      if (view.embed != nullptr && entries > features) features = entries;
    }
    features_ = arena_.take<T>(features);
    panel_ = arena_.take<T>(plan.queries * kPanel<T>);
  }

  int64_t bytes() const { return arena_.used(); }

  void run(int64_t band) {
    const int64_t end = smaller(plan_.height, (band + 1) * plan_.band);
    result_.start();
    for (int64_t y = band * plan_.band; y < end; y += plan_.step) {
      run_rows(y, smaller(end, y + plan_.step));
    }
    result_.finish();
  }

 private:
  void run_rows(int64_t begin, int64_t end) {
    for_views([&](ViewRows<T>& view) { view.load_rows(begin, end, features_); });
    for (int64_t chunk = 0; chunk * kChunk < plan_.width; ++chunk) {
      for_views([&](ViewRows<T>& view) { view.start_chunk(chunk); });
      const int64_t chunk_end = smaller(plan_.width, (chunk + 1) * kChunk);
      for (int64_t y = begin; y < end; ++y) {
        for_views([&](ViewRows<T>& view) { view.start_row(y); });
        for (int64_t x = chunk * kChunk; x < chunk_end; x += kPanel<T>) {
          for_views([&](ViewRows<T>& view) { view.write_panel(x, panel_); });
          result_.take(panel_, y * plan_.width + x, smaller(kPanel<T>, chunk_end - x));
        }
      }
    }
  }

  template <class F>
  void for_views(const F& f) {
    for (int64_t v = 0; v < plan_.view_count; ++v) f(views_[v]);
  }

  const SegmentationPlan<T>& plan_;
  Arena arena_;
  Result result_;
  ViewRows<T>* views_;
  T* features_;  // a row of pixel features, packed into panels
  T* panel_;     // [queries, kPanel]
};

template <class T>
constexpr SegmentationKernel<T> kernel() {
  return {
      [](const SegmentationPlan<T>& plan) {
        return plan.probability != nullptr ? BandWorker<T, Semantic<T>>(plan, 0, nullptr).bytes()
                                           : BandWorker<T, Owners<T>>(plan, 0, nullptr).bytes();
      },
      [](const SegmentationPlan<T>& plan, int64_t band, void* memory) {
        BandWorker<T, Semantic<T>>(plan, band, memory).run(band);
      },
      [](const SegmentationPlan<T>& plan, int64_t band, void* memory) {
        BandWorker<T, Owners<T>>(plan, band, memory).run(band);
      },
  };
}

}  // namespace

extern const PerType<SegmentationKernel> MFK_KERNEL;
const PerType<SegmentationKernel> MFK_KERNEL = {kernel<float>(), kernel<double>()};

}  // namespace mfk::cpu
