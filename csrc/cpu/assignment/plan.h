// Batches of assignment problems on the CPU. This file does not use torch: tensors and NumPy share
// it.
#pragma once

#include "core/assignment_batch.h"

namespace mfk::cpu {

void solve_assignments(const assignment::Batch& batch, int threads);

}  // namespace mfk::cpu
