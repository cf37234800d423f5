// The part of inference that is compiled once for each instruction set.
//
// A task makes a band of rows of the result, a few rows at a time, and keeps the mask logits that these
// need in a ring of rows. Resizing is linear, so all queries are resized before they are multiplied by
// the class probabilities, a panel of pixels at a time: neither masks nor scores are ever in memory.
// Every pixel is computed the same way wherever bands end.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/common/resize.h"
#include "cpu/segmentation/plan.h"

namespace mfk::cpu {

// Left factors of products are packed: entry (row, k) at [row / kBlock][k][row % kBlock].
constexpr int64_t kBlock = 12;
// Pixels of a row of the result that are resized together: a few panels.
constexpr int64_t kChunk = 256;
// Entries that vectors may touch behind the end of a row or table.
constexpr int64_t kSlack = 32;

struct Span {
  int64_t begin, end;
};

template <class T>
struct ViewPlan {
  const MaskPredictions* predictions;
  const int32_t* queries;  // those that take part, the heavy ones first
  int64_t count, heavy;
  int64_t heavy_offset, light_offset;  // in a panel
  const T* embed;                      // packed, [count, C]; null for dense logits
  // From masks to the result where the image is resized once. Where it is resized twice, from masks
  // to the input, and then from there to the result.
  bool twice;
  Resize<T> rows, columns;
  Resize<T> second_rows, second_columns;
  const Span* mask_columns;   // that each chunk needs
  const Span* input_columns;  // where resized twice
  int64_t ring;               // rows of logits
  int64_t logits_stride;      // of the ring, between queries
  int64_t mask_stride;        // of chunks of mask columns
  int64_t input_stride;       // of chunks of input columns
};

template <class T>
struct SegmentationPlan {
  const ViewPlan<T>* views;
  int64_t view_count;
  int64_t queries;  // of all views
  int64_t heavy;    // the light rest has so little weight that it seldom changes the best class
  int64_t height, width;
  int64_t band, step;  // rows of a task, and of those made together
  bool resize_logits;  // the sigmoid comes last

  const T* probability;  // packed, [K, queries]
  const T* weights;      // [queries - heavy]: the largest probability of each light one
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
