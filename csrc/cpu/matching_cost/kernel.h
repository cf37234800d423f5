// The part of the matching cost that is compiled once for each instruction set.
//
// All sums of the cost run over pixels, in any order. The pixels are sorted by segment, so that
// sums over a segment are sums over vectors. If masks overlap, pixels keep their order, and a
// second matrix product sums over the masks. The loss outside a segment is summed directly and
// never as a difference from the sum over all pixels, in which a correctly predicted pixel with a
// large logit would cancel and leave its rounding error. A task computes a chunk of pixels for the
// masks of all layers and stores its partial sums, which are added up in a fixed order afterwards.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/common/pairs.h"
#include "cpu/matching_cost/plan.h"

namespace mfk::cpu {

// The pixels of a segment, and chunks, are padded to multiples of these, which are multiples of
// every vector width.
constexpr int64_t kSegmentPadding = 16;
constexpr int64_t kChunkPadding = 64;

// Pixels [begin, end) of one segment in one chunk; those from `valid_end` on are padding.
struct Piece {
  int32_t segment;  // -1: none
  int32_t begin, end, valid_end;
};

// The three sums of a query over the pixels of a piece, without alpha.
struct PieceSums {
  double positive, negative, probability;
};

struct PixelOrder {
  int64_t padded;              // number of pixels, padding included
  const int32_t* pixels;       // [padded]: -1 is padding
  const Piece* pieces;         // of all chunks
  const int32_t* first_piece;  // [chunks + 1]
  const int32_t* first_pixel;  // [chunks + 1]
  const uint8_t* masks;        // [T_b, padded] if masks overlap, otherwise null
  PieceSums* sums;             // [pieces, L * Q] out
  // [chunks, L * Q, 3, T_b] out if masks overlap; negatives are summed outside the segment
  double* mask_sums;
};

template <class T>
struct MatchingCostPlan {
  const MatchingCostProblem* problem;
  Embeddings<T> embed;       // without pointers for dense logits
  const PixelOrder* orders;  // [B]
  int64_t tile;              // pixels that are processed at a time
};

template <class T>
struct MatchingCostKernel {
  int64_t (*bytes)(const MatchingCostPlan<T>& plan);  // working memory of one thread
  void (*run)(const MatchingCostPlan<T>& plan, int64_t image, int64_t chunk, void* memory);
};

MFK_DECLARE_KERNEL(PerType<MatchingCostKernel>, matching_cost);

}  // namespace mfk::cpu
