// A convolution with kernels of 3 x 3, stride 1 and zeros around the image, on the CPU. No torch in
// here.
#pragma once

#include <cstdint>

#include "core/element.h"

namespace mfk::cpu {

// Channels come in multiples of this.
constexpr int64_t kConvChannels = 16;

struct Conv3x3Problem {
  Element element;  // of maps. The rest is in fp64 if they are, else in fp32
  int64_t images, height, width, in_channels, out_channels;
  const void* x;  // [B, h, w, C]
  void* weight;   // [O, C, 3, 3]; out of the gradient
  struct {
    int64_t out, in, row, column;
  } weight_stride;
  const void* bias;  // [O] or null; the forward pass only
  void* y;           // [B, h, w, O]: out of the forward pass; its gradient, into that of the weight
};

void conv3x3(const Conv3x3Problem& problem, int threads);
void conv3x3_weight_grad(const Conv3x3Problem& problem, int threads);

}  // namespace mfk::cpu
