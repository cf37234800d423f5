// Mask logits from their two factors, on the CPU. This file does not use torch.
#pragma once

#include "cpu/common/predictions.h"

namespace mfk::cpu {

struct MaskLogitsProblem {
  MaskPredictions predictions;  // factored
  bool is_double;               // compute in fp64, otherwise fp32
  Element element;              // of the logits
  void* logits;                 // [L, B, Q, h, w] out
};

void mask_logits(const MaskLogitsProblem& problem, int threads);

}  // namespace mfk::cpu
