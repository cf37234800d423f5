// Semantic and panoptic inference on one image on the CPU. No torch in here.
#pragma once

#include <vector>

#include "cpu/common/predictions.h"

namespace mfk::cpu {

struct SegmentationView {
  Masks masks;  // one layer, one image
  int64_t input_height, input_width;
  int64_t image_height, image_width;
  bool flipped;
};

struct Segmentation {
  std::vector<SegmentationView> views;
  int64_t height, width;
  bool wide;  // in fp64; else fp32, and so are all pointers to void below
};

struct SemanticSegmentation : Segmentation {
  std::vector<const void*> probability;  // [Q, K] of each view
  int64_t classes;
  bool resize_logits;
  int64_t* labels;  // [H, W] out
  void* scores;     // [K, H, W] out, or null
};

struct PanopticOwners : Segmentation {
  const void* scores;  // [Q]
  bool confident_only;
  int32_t* owners;  // [H, W] out
  int64_t* counts;  // [Q, 3] out
};

void semantic_segmentation(const SemanticSegmentation& semantic, int threads);
void panoptic_owners(const PanopticOwners& panoptic, int threads);

}  // namespace mfk::cpu
