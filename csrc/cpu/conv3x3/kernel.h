// The part of the convolution that is compiled once for each instruction set.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/conv3x3/plan.h"

namespace mfk::cpu {

// Tiles of 4 x 4 pixels of the result are numbered row by row, image by image. Transformed data has
// kPoints values for each tile, or for each 3 x 3 filter.
constexpr int64_t kPoints = 36;

template <class T>
struct Conv3x3Kernel {
  int64_t panel;  // output channels of a panel

  // Transforms one panel of the weight, [panels][kPoints][C][panel], padded with zeros.
  void (*transform_weight)(const Conv3x3Problem& problem, int64_t index, T* transformed);

  // Working memory of one thread.
  int64_t (*bytes)(const Conv3x3Problem& problem, int64_t tiles);
  // Computes the results of tiles [first, last).
  void (*forward)(const Conv3x3Problem& problem, const T* weight, int64_t first, int64_t last,
                  void* memory);

  // For the gradient of the weight, blocks of `count` tiles from `first` on are transformed at a
  // time. Transforms tile `t` of a block, in `inputs` [kPoints][count][input_row] and `grads`
  // [kPoints][panels][count][panel].
  int64_t (*input_row)(const Conv3x3Problem& problem);
  void (*transform_tile)(const Conv3x3Problem& problem, int64_t first, int64_t count, int64_t t,
                         const T* zeros, T* inputs, T* grads);
  // Adds the products of a block at one point to `sums` [kPoints][C][panels * panel].
  void (*add_products)(const Conv3x3Problem& problem, int64_t count, int64_t point, const T* inputs,
                       const T* grads, T* sums);
  // Computes the gradient of the weights of one input channel from the sums.
  void (*finish_weight)(const Conv3x3Problem& problem, int64_t channel, const T* sums);
};

MFK_DECLARE_KERNEL(PerType<Conv3x3Kernel>, conv3x3);

}  // namespace mfk::cpu
