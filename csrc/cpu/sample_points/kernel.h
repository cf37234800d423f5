// The part of sampling that is compiled once for each instruction set.
#pragma once

#include "cpu/common/instruction_set.h"
#include "cpu/sample_points/plan.h"

namespace mfk::cpu {

// Each function processes all points of one image.
template <class T>
struct SamplePointsKernel {
  void (*forward)(const SamplePointsProblem& problem, int64_t image);
  void (*backward)(const SamplePointsProblem& problem, int64_t image,
                   void* memory);  // [h, w] of the result
};

MFK_DECLARE_KERNEL(PerType<SamplePointsKernel>, sample_points);

}  // namespace mfk::cpu
