// The part of the mask loss that is compiled once for each instruction set.
//
// An image is divided into strips of low-resolution rows, and a task is a chunk of strips. For each
// strip, the logits of its own rows and of the adjacent ones are computed for the matched masks of
// all layers; full-resolution pixels exist only in registers. Each task stores its partial sums,
// which are added up in a fixed order afterwards, so that results do not depend on the number of
// threads.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/common/resize.h"
#include "cpu/mask_loss/plan.h"

namespace mfk::cpu {

// A matched mask.
struct MatchedRow {
  int32_t layer, query, segment;
  int32_t first;  // the first row of the image with the same layer and query
};

// Bilinear resizing along one axis, and its adjoint. Tables are padded.
template <class T>
struct AxisResize : Resize<T> {
  int64_t size, new_size;
  int64_t span;          // the largest number of pixels that a source contributes to
  const int32_t* start;  // [size]: the first pixel that each source contributes to
  const T* weights;      // [size, span]
};

// The coefficients of a matched mask's gradient: that of the focal loss, and those of the dice loss
// for targets of 0 (outside) and 1 (inside).
template <class T>
struct GradFactors {
  T focal, dice_outside, dice_inside;
};

template <class T>
struct MaskLossPlan {
  const MaskLossProblem* problem;
  const MatchedRow* rows;        // of all images
  const int64_t* first_row;      // [B + 1]
  const int64_t* first_segment;  // [B]
  const T* embed;                // [rows, C]
  AxisResize<T> horizontal, vertical;
  int64_t strip_rows, strips, chunks;  // strips and chunks of an image
  double* partial_sums;                // per image [chunks, its rows, 3]: sums of focal, s y and s

  // The backward pass only.
  const GradFactors<T>* grad_factors;  // [rows]
  T* partial_embed;                    // per image [chunks, rows of the image, C]
};

template <class T>
struct MaskLossKernel {
  int64_t (*forward_bytes)(const MaskLossPlan<T>& plan);  // working memory of one thread
  int64_t (*backward_bytes)(const MaskLossPlan<T>& plan);
  void (*forward)(const MaskLossPlan<T>& plan, int64_t image, int64_t chunk, void* memory);
  void (*backward)(const MaskLossPlan<T>& plan, int64_t image, int64_t chunk, void* memory);
};

MFK_DECLARE_KERNEL(PerType<MaskLossKernel>, mask_loss);

}  // namespace mfk::cpu
