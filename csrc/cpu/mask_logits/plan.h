// Mask logits from their two factors, on the CPU. No torch in here.
#pragma once

#include "cpu/common/predictions.h"

namespace mfk::cpu {

struct MaskLogitsProblem {
  MaskPredictions predictions;  // in factors
  bool is_double;               // in fp64; else fp32
  Element element;              // of the logits
  void* logits;                 // [L, B, Q, h, w] out
};

void mask_logits(const MaskLogitsProblem& problem, int threads);

}  // namespace mfk::cpu
