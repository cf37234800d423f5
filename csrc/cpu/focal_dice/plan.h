// Focal and dice loss of given logits, on the CPU. This file does not use torch.
#pragma once

#include "core/element.h"

namespace mfk::cpu {

struct FocalDiceProblem {
  const void* logits;  // [M, P], or [M, h, w] with points
  Element logits_element;
  const void* targets;  // [M, P], or [M, H, W] with points
  bool targets_are_bool;
  Element targets_element;  // unless they are bool
  int64_t masks, elements;
  double alpha, gamma;
  bool is_double;  // compute in fp64, otherwise fp32; also the type of all void pointers below

  bool at_points;      // sample at points instead of using all elements
  const void* points;  // [M, P, 2]: x and y, from 0 to 1 from edge to edge
  int64_t height, width, target_height, target_width;

  void* focal;  // [M] out
  void* dice;   // [M] out
  void* sums;   // [M, 3]: output of the forward pass, input of the backward pass

  // The backward pass only.
  const void* grad_focal;  // [M]
  const void* grad_dice;   // [M]
  void* grad_logits;       // like the logits, in their type
};

void focal_dice(const FocalDiceProblem& loss, int threads);
void focal_dice_backward(const FocalDiceProblem& loss, int threads);

// The focal loss of each element, stored in `losses`, like the logits; or its gradient from
// `grad_losses`, in the type of the logits.
struct FocalLossProblem {
  FocalDiceProblem pair;  // one mask
  void* losses;
  const void* grad_losses;
};

void sigmoid_focal_loss(const FocalLossProblem& loss, int threads);
void sigmoid_focal_loss_backward(const FocalLossProblem& loss, int threads);

}  // namespace mfk::cpu
