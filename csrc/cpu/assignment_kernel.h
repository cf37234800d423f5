// The part of the CPU solver that is compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/assignment.h"

namespace mfk::cpu {

struct AssignmentKernel {
  // Bytes of working memory, aligned to 64, that the largest problem of the batch needs.
  int64_t (*workspace)(const AssignmentBatch& batch);
  void (*solve)(const AssignmentBatch& batch, int64_t index, void* workspace);
};

extern const AssignmentKernel assignment_baseline;
#ifdef MFK_X86_VARIANTS
extern const AssignmentKernel assignment_avx2;
extern const AssignmentKernel assignment_avx512;
#endif

}  // namespace mfk::cpu
