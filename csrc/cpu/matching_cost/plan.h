// The cost of matching every query to every segment on the CPU. This file does not use torch.
#pragma once

#include "cpu/common/predictions.h"

namespace mfk::cpu {

struct ClassStride {
  int64_t layer, image, query, class_index;  // in elements
};

struct MatchingCostProblem {
  const void* class_logits;  // [L, B, Q, K + 1]
  Element class_element;
  ClassStride class_stride;
  int64_t classes;  // K + 1
  MaskPredictions predictions;
  Segments segments;
  const int64_t* labels;  // [N]
  double class_weight, mask_weight, dice_weight, alpha, gamma;
  bool is_double;  // compute in fp64, otherwise fp32; also the type of `cost`
  void* cost;      // [L, B, Q, T] out
};

void matching_cost(const MatchingCostProblem& problem, int threads);

}  // namespace mfk::cpu
