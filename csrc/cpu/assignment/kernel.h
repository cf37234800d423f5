// The part of the CPU solver that is compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/assignment/plan.h"
#include "cpu/common/instruction_set.h"

namespace mfk::cpu {

// Solves problem `index` of a batch.
using AssignmentSolver = void (*)(const assignment::Batch& batch, int64_t index, void* workspace);

struct AssignmentKernel {
  // Bytes of working memory, aligned to 64, that the largest problem of the batch needs.
  int64_t (*workspace)(const assignment::Batch& batch);
  AssignmentSolver (*solver)(const assignment::Batch& batch);
};

MFK_DECLARE_KERNEL(AssignmentKernel, assignment);

}  // namespace mfk::cpu
