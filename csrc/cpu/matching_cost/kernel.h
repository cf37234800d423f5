// The part of the matching cost that is compiled once for each instruction set.
//
// All sums of the cost run over pixels, whose order is free: those of one segment come together, so
// that sums over a segment are sums over vectors. Where masks overlap, pixels keep their order, and a
// second product adds up the masks. What lies outside of a segment is added up, never taken from the
// sum over all pixels: a right pixel with a large logit would swallow the rest. A task takes a chunk of pixels through the masks of all layers;
// what tasks add up to is stored for each and summed in order afterwards.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/matching_cost/plan.h"

namespace mfk::cpu {

// Chunks, and the pixels of a segment, are padded to multiples of these. Every vector fits in.
constexpr int64_t kSegmentPadding = 16;
constexpr int64_t kChunkPadding = 64;

// Pixels [begin, end) of one segment in one chunk, of which those from `valid_end` are padding.
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
  const uint8_t* masks;        // [T_b, padded] where masks overlap, else null
  PieceSums* sums;             // [pieces, L * Q] out
  // [chunks, L * Q, 3, T_b] out where masks overlap: negatives are outside of the segment
  double* mask_sums;
};

template <class T>
struct MatchingCostPlan {
  const MatchingCostProblem* problem;
  const T* embed;            // [B, L * Q, C]
  const PixelOrder* orders;  // [B]
  int64_t tile;              // pixels at a time
};

template <class T>
struct MatchingCostKernel {
  int64_t (*bytes)(const MatchingCostPlan<T>& plan);  // working memory of one thread
  void (*run)(const MatchingCostPlan<T>& plan, int64_t image, int64_t chunk, void* memory);
};

MFK_DECLARE_KERNEL(PerType<MatchingCostKernel>, matching_cost);

}  // namespace mfk::cpu
