// Batches of assignment problems on the CPU. No torch in here: tensors and NumPy share it.
#pragma once

#include "core/assignment_batch.h"

namespace mfk::cpu {

using AssignmentBatch = assignment::Batch;

void solve_assignments(const AssignmentBatch& batch, int threads);

}  // namespace mfk::cpu
