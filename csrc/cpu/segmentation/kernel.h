// The part of inference that is compiled once for each instruction set.
//
// A task computes a band of rows of the result, a few rows at a time, and keeps the mask logits
// that they need in a ring buffer of rows. Resizing is linear, so that masks can be resized before
// they are multiplied by the class probabilities, one panel of pixels at a time: neither full masks
// nor full scores are ever in memory. Results do not depend on how rows are divided into bands.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/common/resize.h"
#include "cpu/segmentation/plan.h"

namespace mfk::cpu {

// Left factors of products are packed: entry (row, k) is at [row / kBlock][k][row % kBlock].
constexpr int64_t kBlock = 12;
// Pixels of a row of the result that are resized together, a few panels.
constexpr int64_t kChunk = 256;
// Entries beyond the end of a row or table that vectors may access.
constexpr int64_t kSlack = 32;

struct Span {
  int64_t begin, end;
};

template <class T>
struct ViewPlan {
  const MaskPredictions* predictions;
  const int32_t* queries;  // the queries that are used, the heavy ones first
  int64_t count, heavy;
  int64_t heavy_offset, light_offset;  // in a panel
  const T* embed;                      // packed, [count, C]; null for dense logits
  // If masks are resized once, the tables from masks to the result. If they are resized twice, the
  // tables from masks to the input, and those from the input to the result.
  bool twice;
  Resize<T> rows, columns;
  Resize<T> second_rows, second_columns;
  const Span* mask_columns;   // the columns that each chunk needs
  const Span* input_columns;  // the same of the input, if resized twice
  int64_t ring;               // rows of logits in the ring buffer
  int64_t logits_stride;      // of the ring, between queries
  int64_t mask_stride;        // of chunks of mask columns
  int64_t input_stride;       // of chunks of input columns
};

template <class T>
struct SegmentationPlan {
  const ViewPlan<T>* views;
  int64_t view_count;
  int64_t queries;  // of all views
  int64_t heavy;    // the others are light: their weights are so small that they seldom matter
  int64_t height, width;
  int64_t band, step;  // rows of a task, and rows that are computed together
  bool resize_logits;  // the sigmoid is applied after resizing

  const T* probability;  // packed, [K, queries]
  const T* weights;      // [queries - heavy]: the largest probability of each light query
  int64_t classes;
  int64_t* labels;
  T* scores;

  const T* query_scores;  // [queries]
  bool confident_only;
  int32_t* owners;
  int64_t* counts;  // [bands, queries, 3]
};

template <class T>
struct SegmentationKernel {
  int64_t (*bytes)(const SegmentationPlan<T>& plan);  // working memory of one thread
  void (*semantic)(const SegmentationPlan<T>& plan, int64_t band, void* memory);
  void (*owners)(const SegmentationPlan<T>& plan, int64_t band, void* memory);
};

MFK_DECLARE_KERNEL(PerType<SegmentationKernel>, segmentation);

}  // namespace mfk::cpu
