// The part of group norm that is compiled once for each instruction set.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/group_norm/plan.h"

namespace mfk::cpu {

// Some pixels of an image.
struct NormPixels {
  int64_t image, first, last;
};

// Values for each channel of an image, [C].
template <class T>
struct NormChannels {
  const T *mean, *scale, *bias;  // y = scale * (x - mean) + bias
  // The backward pass: grad_x = scale * grad_y + slope * (x - mean) + offset.
  const T *slope, *offset;
};

template <class T>
struct GroupNormKernel {
  // For each channel over some pixels, [3][C]: a rounded mean, and the sums of differences from it
  // and of their squares.
  void (*moments)(const GroupNormProblem& problem, NormPixels pixels, T* result);
  void (*forward)(const GroupNormProblem& problem, NormPixels pixels, NormChannels<T> channels);
  // Sums over some pixels of grad_y and of grad_y * (x - mean), [2][C].
  void (*grad_sums)(const GroupNormProblem& problem, NormPixels pixels, NormChannels<T> channels,
                    T* sums);
  void (*grad_input)(const GroupNormProblem& problem, NormPixels pixels, NormChannels<T> channels);
};

MFK_DECLARE_KERNEL(PerType<GroupNormKernel>, group_norm);

}  // namespace mfk::cpu
