// Focal and dice loss of logits that are already there, on the CPU. No torch in here.
#pragma once

#include "core/element.h"

namespace mfk::cpu {

struct FocalDiceProblem {
  const void* logits;  // [M, P], or [M, h, w] where there are points
  Element logits_element;
  const void* targets;  // [M, P], or [M, H, W] where there are points
  bool targets_are_bool;
  Element targets_element;  // unless they are
  int64_t masks, elements;
  double alpha, gamma;
  bool is_double;  // in fp64; else fp32, and so are all pointers to void below

  bool at_points;      // rather than at all elements
  const void* points;  // [M, P, 2]: x and y, the image from 0 to 1
  int64_t height, width, target_height, target_width;

  void* focal;  // [M] out
  void* dice;   // [M] out
  void* sums;   // [M, 3]: out of the forward pass, into the backward pass

  // The backward pass only.
  const void* grad_focal;  // [M]
  const void* grad_dice;   // [M]
  void* grad_logits;       // like the logits, in their type
};

void focal_dice(const FocalDiceProblem& loss, int threads);
void focal_dice_backward(const FocalDiceProblem& loss, int threads);

// The focal loss of each element alone, into `losses`, like the logits; and its gradient from
// `grad_losses`, in the type of the logits.
struct FocalLossProblem {
  FocalDiceProblem pair;  // one mask
  void* losses;
  const void* grad_losses;
};

void sigmoid_focal_loss(const FocalLossProblem& loss, int threads);
void sigmoid_focal_loss_backward(const FocalLossProblem& loss, int threads);

}  // namespace mfk::cpu
