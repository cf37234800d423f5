// 3 x 3 convolution with stride 1 and zero padding 1, on the CPU. This file does not use torch.
#pragma once

#include <cstdint>

#include "core/element.h"

namespace mfk::cpu {

struct Conv3x3Problem {
  Element element;  // of maps; all else is fp64 if they are fp64, otherwise fp32
  int64_t images, height, width, in_channels, out_channels;
  const void* x;  // [B, h, w, C]
  void* weight;   // [O, C, 3, 3]; for the weight gradient, the output
  struct {
    int64_t out, in, row, column;
  } weight_stride;
  const void* bias;  // [O] or null; the forward pass only
  void* y;  // [B, h, w, O]: output of the forward pass; for the weight gradient, the gradient
};

void conv3x3(const Conv3x3Problem& problem, int threads);
void conv3x3_weight_grad(const Conv3x3Problem& problem, int threads);

}  // namespace mfk::cpu
