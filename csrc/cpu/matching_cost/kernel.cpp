// Computes one chunk of the matching cost on one thread. The build compiles this file once for each
// instruction set, with MFK_KERNEL as the name of its only public object.
#include "cpu/matching_cost/kernel.h"

#include "cpu/common/gemm.h"
#include "cpu/common/memory.h"
#include "cpu/common/pairs.h"
#include "cpu/common/pixels.h"
#include "cpu/common/vector_math.h"

namespace mfk::cpu {
namespace {

// The terms of -z from those of z.
template <class V>
MFK_INLINE Sigmoid<V> counterpart(const Sigmoid<V>& s) {
  return {s.q, s.p, s.down, s.up};
}

// The index of the map that is summed outside segments.
constexpr int kNegative = 1;

// Takes embeddings of type E: T or pairs.
template <class T, class E>
class ChunkWorker {
 public:
  ChunkWorker(const MatchingCostPlan<T>& plan, const E* embed, int64_t image, void* memory)
      : plan_(plan),
        problem_(*plan.problem),
        predictions_(problem_.predictions),
        order_(plan.orders[image]),
        image_(image),
        segments_(problem_.segments.counts[image]),
        queries_(predictions_.layers * predictions_.queries),
        embed_(embed) {
    Arena arena(memory);
    logits_ = arena.take<T>(kTileRows * plan.tile);
    if (predictions_.features != nullptr)
      features_ = arena.take<E>(plan.tile * depth_of<E>(predictions_.channels));
    // Working memory is the same for every image.
    int64_t most = 0;
    for (int64_t b = 0; b < predictions_.images; ++b) {
      if (plan.orders[b].masks != nullptr) most = larger(most, problem_.segments.counts[b]);
    }
    if (most > 0) {
      const int64_t padded = round_up(most, kPanel<T>);
      for (T*& panels : panels_) panels = arena.take<T>(padded * plan.tile);
      for (T*& map : maps_) map = arena.take<T>(kTileRows * plan.tile);
      products_ = arena.take<T>(kTileRows * kPanel<T>);
    }
    bytes_ = arena.used();
  }

  int64_t bytes() const { return bytes_; }

  void run(int64_t chunk) {
    if (segments_ == 0) return;
    const int64_t end = order_.first_pixel[chunk + 1];
    const int32_t first = order_.first_piece[chunk], last = order_.first_piece[chunk + 1];
    for (int64_t i = first * queries_; i < last * queries_; ++i) order_.sums[i] = {0, 0, 0};
    mask_sums_ = order_.mask_sums + chunk * queries_ * 3 * segments_;
    if (order_.masks != nullptr) {
      for (int64_t i = 0; i < queries_ * 3 * segments_; ++i) mask_sums_[i] = 0;
    }
    int32_t piece = first;
    for (int64_t begin = order_.first_pixel[chunk]; begin < end; begin += plan_.tile) {
      begin_ = begin;
      end_ = smaller(end, begin + plan_.tile);
      if (predictions_.features != nullptr) {
        pack_pixels(predictions_, image_, order_.pixels + begin_, end_ - begin_, features_);
      }
      if (order_.masks != nullptr) pack_masks();
      while (order_.pieces[piece].end <= begin_) ++piece;
      for_blocks(piece, last);
    }
  }

 private:
  // Processes all queries in the tile; its pieces begin with `first`.
  void for_blocks(int32_t first, int32_t last) {
    const int64_t pixels = end_ - begin_;
    const int64_t depth = depth_of<E>(predictions_.channels);
    for (int64_t block = 0; block < queries_; block += kTileRows) {
      const int64_t count = smaller(kTileRows, queries_ - block);
      if (predictions_.features != nullptr) {
        const Left<E> embed{embed_ + (image_ * queries_ + block) * depth, depth, 1};
        for (int64_t p = 0; p < pixels; p += kPanel<T>) {
          multiply<false>(count, embed, features_ + p * depth, depth, logits_ + p, plan_.tile);
        }
      } else {
        for (int64_t i = 0; i < count; ++i) {
          const int64_t layer = (block + i) / predictions_.queries,
                        query = (block + i) % predictions_.queries;
          pick_logits(predictions_, layer, image_, query, order_.pixels + begin_, pixels,
                      logits_ + i * plan_.tile);
        }
      }
      with_gamma(problem_.gamma, [&](auto gamma) {
        constexpr int kGamma = decltype(gamma)::value;
        for (int64_t i = 0; i < count; ++i) {
          for (int32_t index = first; index < last; ++index) {
            const Piece& piece = order_.pieces[index];
            if (piece.begin >= end_) break;
            add_piece<kGamma>(piece, logits_ + i * plan_.tile,
                              order_.sums[index * queries_ + block + i], i);
          }
        }
      });
      if (order_.masks != nullptr) add_masks(block, count);
    }
  }

  template <int kGamma>
  void add_piece(const Piece& piece, const T* logits, PieceSums& sums, int64_t row) {
    using V = VectorFor<T>;
    constexpr int kWidth = VectorOf<T>::kWidth;
    const T gamma = static_cast<T>(problem_.gamma);
    V positive{}, negative{}, probability{};
    const bool maps = order_.masks != nullptr;
    const bool inside = piece.segment >= 0 || maps;
    const auto step = [&](int64_t p, const auto& keep) {
      const V logit = load<V>(logits + (p - begin_));
      const Sigmoid<V> s = sigmoid(multiply_add(logit, V{}, logit));  // NaN for infinite logits
      const V outside_loss = keep(focal<kGamma>(s, gamma));
      const V probabilities = keep(s.p);
      negative += outside_loss;
      probability += probabilities;
      if (!inside) return;
      const V inside_loss = keep(focal<kGamma>(counterpart(s), gamma));
      positive += inside_loss;
      if (!maps) return;
      const int64_t index = row * plan_.tile + (p - begin_);
      store(maps_[0] + index, inside_loss);
      store(maps_[kNegative] + index, outside_loss);
      store(maps_[2] + index, probabilities);
    };
    const int64_t begin = larger(piece.begin, begin_), end = smaller(piece.end, end_);
    int64_t p = begin;
    for (; p + kWidth <= smaller(end, piece.valid_end); p += kWidth) {
      step(p, [](const V& value) { return value; });
    }
    for (; p < end; p += kWidth) {
      const IndexFor<T> valid =
          lane_indices<T>() < static_cast<int>(smaller(kWidth, larger(piece.valid_end - p, 0)));
      step(p, [&](const V& value) { return valid ? value : V{}; });
    }
    sums.positive += sum_of<T>(positive);
    sums.negative += sum_of<T>(negative);
    sums.probability += sum_of<T>(probability);
  }

  // Packs the masks of the tile, and their complements, into panels of segments
  // [padded / kPanel][tile, kPanel] of 0 and 1.
  void pack_masks() {
    constexpr int64_t kColumns = kPanel<T>;
    const int64_t padded = order_.padded;
    for (int64_t t = 0; t < round_up(segments_, kColumns); ++t) {
      const int64_t first = t / kColumns * kColumns * plan_.tile + t % kColumns;
      T *inside = panels_[0] + first, *outside = panels_[1] + first;
      const uint8_t* mask = t < segments_ ? order_.masks + t * padded + begin_ : nullptr;
      for (int64_t p = 0; p < end_ - begin_; ++p) {
        const bool is_inside = mask != nullptr && mask[p] != 0;
        inside[p * kColumns] = static_cast<T>(is_inside ? 1 : 0);
        outside[p * kColumns] = static_cast<T>(is_inside ? 0 : 1);
      }
    }
  }

  void add_masks(int64_t block, int64_t count) {
    constexpr int64_t kColumns = kPanel<T>;
    for (int which = 0; which < 3; ++which) {
      const T* panels = panels_[which == kNegative ? 1 : 0];
      for (int64_t t = 0; t < segments_; t += kColumns) {
        multiply<false, T>(count, {maps_[which], plan_.tile, 1}, panels + t * plan_.tile,
                           end_ - begin_, products_, kColumns);
        for (int64_t i = 0; i < count; ++i) {
          double* sums = mask_sums_ + ((block + i) * 3 + which) * segments_ + t;
          for (int64_t j = 0; j < smaller(kColumns, segments_ - t); ++j) {
            sums[j] += static_cast<double>(products_[i * kColumns + j]);
          }
        }
      }
    }
  }

  const MatchingCostPlan<T>& plan_;
  const MatchingCostProblem& problem_;
  const MaskPredictions& predictions_;
  const PixelOrder& order_;
  const int64_t image_, segments_, queries_;
  int64_t bytes_ = 0;
  int64_t begin_ = 0, end_ = 0;  // the tile
  double* mask_sums_ = nullptr;
  T* logits_ = nullptr;    // [kTileRows, tile]
  const E* embed_;         // [B, L * Q, depth_of<E>(C)], or null for dense logits
  E* features_ = nullptr;  // of the tile, in panels of pixels
  T* panels_[2] = {};      // masks of the tile and their complements, in panels of segments
  T* maps_[3] = {};        // [kTileRows, tile]: focal loss of positives and negatives, probability
  T* products_ = nullptr;  // a tile of products of maps and masks
};

template <class T>
constexpr MatchingCostKernel<T> kernel() {
  return {
      [](const MatchingCostPlan<T>& plan) {
        int64_t bytes = 0;
        with_embeddings(plan.embed, [&](const auto* embed) {
          if (plan.problem->predictions.images == 0) return;
          bytes = ChunkWorker(plan, embed, 0, nullptr).bytes();
        });
        return bytes;
      },
      [](const MatchingCostPlan<T>& plan, int64_t image, int64_t chunk, void* memory) {
        with_embeddings(plan.embed, [&](const auto* embed) {
          ChunkWorker(plan, embed, image, memory).run(chunk);
        });
      },
  };
}

}  // namespace

extern const PerType<MatchingCostKernel> MFK_KERNEL;
const PerType<MatchingCostKernel> MFK_KERNEL = {kernel<float>(), kernel<double>()};

}  // namespace mfk::cpu
