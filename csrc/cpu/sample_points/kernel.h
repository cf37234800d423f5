// The part of sampling that is compiled once for each instruction set.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/sample_points/plan.h"

namespace mfk::cpu {

// All points of one image.
struct SamplePointsTasks {
  void (*forward)(const SamplePoints& task, int64_t image);
  void (*backward)(const SamplePoints& task, int64_t image, void* memory);  // [h, w] of the result
};

struct SamplePointsKernel {
  SamplePointsTasks narrow, wide;
};

MFK_DECLARE_KERNEL(SamplePointsKernel, sample_points);

}  // namespace mfk::cpu
