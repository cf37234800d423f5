// Focal and dice loss of matched masks on the CPU. No torch in here.
#pragma once

#include "cpu/common/predictions.h"

namespace mfk::cpu {

struct MaskLossProblem {
  MaskPredictions predictions;
  Segments segments;
  const int64_t* assignment;  // [L, B, T]
  double alpha, gamma;
  bool is_double;  // in fp64; else fp32, and so are all pointers to void below

  void* focal;  // [L, B, T] out, zeros
  void* dice;   // [L, B, T] out, zeros
  void* sums;   // [L, B, T, 3]: out of the forward pass (zeros), into the backward pass

  // The backward pass only.
  const void* grad_focal;  // [L, B, T]
  const void* grad_dice;   // [L, B, T]
  void* grad_embed;        // like the embeddings or logits, contiguous, zeros; or null
  void* grad_features;     // [B, C, h, w], or null
  bool channels_last;      // whether that lies in memory as [B, h, w, C]
};

void mask_loss(const MaskLossProblem& problem, int threads);
void mask_loss_backward(const MaskLossProblem& problem, int threads);

}  // namespace mfk::cpu
