// Focal and dice loss of matched masks on the CPU. This file does not use torch.
#pragma once

#include "cpu/common/predictions.h"

namespace mfk::cpu {

struct MaskLossProblem {
  MaskPredictions predictions;
  Segments segments;
  const int64_t* assignment;  // [L, B, T]
  double alpha, gamma;
  bool is_double;  // compute in fp64, otherwise fp32; also the type of all void pointers below

  void* focal;  // [L, B, T] out, initially zeros
  void* dice;   // [L, B, T] out, initially zeros
  void* sums;   // [L, B, T, 3]: output of the forward pass (initially zeros), input of the backward

  // The backward pass only.
  const void* grad_focal;  // [L, B, T]
  const void* grad_dice;   // [L, B, T]
  void* grad_embed;        // like the embeddings or logits, contiguous, initially zeros; or null
  void* grad_features;     // [B, C, h, w], or null
  bool channels_last;      // whether grad_features is [B, h, w, C] in memory
};

void mask_loss(const MaskLossProblem& problem, int threads);
void mask_loss_backward(const MaskLossProblem& problem, int threads);

}  // namespace mfk::cpu
