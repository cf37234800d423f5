// The part of focal and dice loss that is compiled once for each instruction set.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/focal_dice/plan.h"

namespace mfk::cpu {

struct FocalDiceSums {
  double focal = 0, overlap = 0, probability = 0, area = 0;
};

// Factors of the slopes of the focal loss, and of the dice loss for y = 0 and its change with y.
template <class T>
struct FocalDiceSlopes {
  T focal, dice, dice_change;
};

// All of elements [first, last) of one mask.
template <class T>
struct FocalDiceTasks {
  FocalDiceSums (*sums)(const FocalDice& loss, int64_t mask, int64_t first, int64_t last);
  void (*slopes)(const FocalDice& loss, int64_t mask, int64_t first, int64_t last,
                 const FocalDiceSlopes<T>& slopes);
  // The slopes of a whole mask that is read at points; `memory` holds its T [h, w].
  void (*slopes_at_points)(const FocalDice& loss, int64_t mask, const FocalDiceSlopes<T>& slopes,
                           void* memory);
  void (*losses)(const FocalLoss& loss, int64_t first, int64_t last);
  void (*loss_slopes)(const FocalLoss& loss, int64_t first, int64_t last);
};

struct FocalDiceKernel {
  FocalDiceTasks<float> narrow;
  FocalDiceTasks<double> wide;
};

MFK_DECLARE_KERNEL(FocalDiceKernel, focal_dice);

}  // namespace mfk::cpu
