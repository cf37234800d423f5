// The part of the focal and dice loss that is compiled once for each instruction set.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/focal_dice/plan.h"

namespace mfk::cpu {

struct FocalDiceSums {
  double focal = 0, overlap = 0, probability = 0, area = 0;
};

// The coefficients of the gradient of elements: that of the focal loss, and for the dice loss with
// target y, dice + dice_change * y.
template <class T>
struct FocalDiceGradFactors {
  T focal, dice, dice_change;
};

// The functions process elements [first, last) of one mask.
template <class T>
struct FocalDiceKernel {
  FocalDiceSums (*sums)(const FocalDiceProblem& loss, int64_t mask, int64_t first, int64_t last);
  void (*grad_logits)(const FocalDiceProblem& loss, int64_t mask, int64_t first, int64_t last,
                      const FocalDiceGradFactors<T>& factors);
  // The gradient of a whole mask that is sampled at points; `memory` holds T [h, w].
  void (*grad_logits_at_points)(const FocalDiceProblem& loss, int64_t mask,
                                const FocalDiceGradFactors<T>& factors, void* memory);
  void (*losses)(const FocalLossProblem& loss, int64_t first, int64_t last);
  void (*loss_gradients)(const FocalLossProblem& loss, int64_t first, int64_t last);
};

MFK_DECLARE_KERNEL(PerType<FocalDiceKernel>, focal_dice);

}  // namespace mfk::cpu
