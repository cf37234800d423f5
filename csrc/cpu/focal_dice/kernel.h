// The part of focal and dice loss that is compiled once for each instruction set.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/focal_dice/plan.h"

namespace mfk::cpu {

struct FocalDiceSums {
  double focal = 0, overlap = 0, probability = 0, area = 0;
};

// By what the gradients of elements are multiplied: that of the focal loss, and that of the dice loss
// for y = 0 and its change with y.
template <class T>
struct FocalDiceGradFactors {
  T focal, dice, dice_change;
};

// All of elements [first, last) of one mask.
template <class T>
struct FocalDiceKernel {
  FocalDiceSums (*sums)(const FocalDiceProblem& loss, int64_t mask, int64_t first, int64_t last);
  void (*grad_logits)(const FocalDiceProblem& loss, int64_t mask, int64_t first, int64_t last,
                      const FocalDiceGradFactors<T>& factors);
  // The gradient of a whole mask that is read at points; `memory` holds its T [h, w].
  void (*grad_logits_at_points)(const FocalDiceProblem& loss, int64_t mask,
                                const FocalDiceGradFactors<T>& factors, void* memory);
  void (*losses)(const FocalLossProblem& loss, int64_t first, int64_t last);
  void (*loss_gradients)(const FocalLossProblem& loss, int64_t first, int64_t last);
};

MFK_DECLARE_KERNEL(PerType<FocalDiceKernel>, focal_dice);

}  // namespace mfk::cpu
