// The part of the convolution that is compiled once for each instruction set.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/conv3x3/plan.h"

namespace mfk::cpu {

// Tiles of 4 x 4 pixels of the result are counted row by row, image by image. What is transformed has
// kPoints values for each of them, or for each 3 x 3 weights.
constexpr int64_t kPoints = 36;

template <class T>
struct Conv3x3Kernel {
  int64_t panel;  // output channels that lie together

  // One panel of [panels][kPoints][C][panel], of what is beyond the weight: zeros.
  void (*transform_weight)(const Conv3x3Problem& problem, int64_t index, T* transformed);

  // Working memory of one thread.
  int64_t (*bytes)(const Conv3x3Problem& problem, int64_t tiles);
  // The results of tiles [first, last).
  void (*forward)(const Conv3x3Problem& problem, const T* weight, int64_t first, int64_t last,
                  void* memory);

  // For the gradient of the weight, of which `count` tiles [first, last) are taken at a time:
  // tile `t`, of `inputs` [kPoints][count][in_row] and `grads` [kPoints][panels][count][panel]
  int64_t (*input_row)(const Conv3x3Problem& problem);
  void (*transform_tile)(const Conv3x3Problem& problem, int64_t first, int64_t count, int64_t t,
                         const T* zeros, T* inputs, T* grads);
  // Adds their products at one point to `sums` [kPoints][C][panels * panel].
  void (*add_products)(const Conv3x3Problem& problem, int64_t count, int64_t point, const T* inputs,
                       const T* grads, T* sums);
  // Gradients of the weights of one input channel.
  void (*finish_weight)(const Conv3x3Problem& problem, int64_t channel, const T* sums);
};

MFK_DECLARE_KERNEL(PerType<Conv3x3Kernel>, conv3x3);

}  // namespace mfk::cpu
