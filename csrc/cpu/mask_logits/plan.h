// Mask logits from their two factors, on the CPU. No torch in here.
#pragma once

#include "cpu/common/predictions.h"

namespace mfk::cpu {

struct MaskLogits {
  Masks masks;      // in factors
  bool wide;        // in fp64; else fp32
  Element element;  // of the logits
  void* logits;     // [L, B, Q, h, w] out
};

void mask_logits(const MaskLogits& task, int threads);

}  // namespace mfk::cpu
