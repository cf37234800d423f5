// Semantic and panoptic inference for one image on the CPU. This file does not use torch.
#pragma once

#include <vector>

#include "cpu/common/predictions.h"

namespace mfk::cpu {

struct ViewPredictions {
  MaskPredictions predictions;  // one layer, one image
  int64_t padded_height, padded_width;
  int64_t image_height, image_width;
  bool flipped;
};

struct SegmentationProblem {
  std::vector<ViewPredictions> views;
  int64_t height, width;
  bool is_double;  // compute in fp64, otherwise fp32; also the type of all void pointers below
};

struct SemanticProblem : SegmentationProblem {
  std::vector<const void*> probability;  // [Q, K] of each view
  int64_t classes;
  bool resize_logits;
  int64_t* labels;  // [H, W] out
  void* scores;     // [K, H, W] out, or null
};

struct OwnersProblem : SegmentationProblem {
  const void* scores;  // [Q]
  bool confident_only;
  int32_t* owners;  // [H, W] out
  int64_t* counts;  // [Q, 3] out
};

void semantic_segmentation(const SemanticProblem& problem, int threads);
void panoptic_owners(const OwnersProblem& problem, int threads);

}  // namespace mfk::cpu
