// Group norm, optionally followed by ReLU, on the CPU. This file does not use torch.
#pragma once

#include <cstdint>

#include "core/element.h"

namespace mfk::cpu {

struct GroupNormProblem {
  Element element;  // of maps; all else is fp64 if they are fp64, otherwise fp32
  int64_t images, pixels, channels, groups;
  bool relu;
  double eps;          // the forward pass only
  const void* x;       // [B, P, C]
  const void* weight;  // [C]
  const void* bias;    // [C]
  void* y;             // [B, P, C]: output of the forward pass
  void* mean;          // [B, G]: outputs of the forward pass, inputs of the backward pass
  void* inverse_std;
  const void* grad_y;  // the backward pass only, as all that follows
  void* grad_x;
  void* grad_weight;
  void* grad_bias;
};

void group_norm(const GroupNormProblem& problem, int threads);
void group_norm_backward(const GroupNormProblem& problem, int threads);

}  // namespace mfk::cpu
