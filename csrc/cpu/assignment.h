// Batches of assignment problems on the CPU. No torch in here: tensors and NumPy share it.
#pragma once

#include <cstdint>

namespace mfk::cpu {

enum class Element { kHalf, kBFloat16, kFloat, kDouble };

struct AssignmentBatch {
  const void* cost;
  Element element;
  int64_t batch, rows, columns;
  int64_t batch_stride, row_stride, column_stride;  // in elements
  const int64_t* row_counts;                        // [batch], or null: all
  const int64_t* column_counts;
  bool maximize;
  bool strict;      // SciPy's indices on ties
  bool substitute;  // give missing edges a finite cost where a problem is infeasible without them
  int64_t* assignment;  // [batch, rows] out: column of each row, -1 for none
  int32_t* status;      // [batch] out: assignment::Status bits
};

void solve_assignments(const AssignmentBatch& batch, int threads);

}  // namespace mfk::cpu
