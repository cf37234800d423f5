// Converts the tensors of the operator `assignment` to a batch of problems, for CPU and GPU.
#pragma once

#include <optional>
#include <tuple>

#include "core/assignment_batch.h"
#include "core/extent.h"
#include "tensors/checks.h"

namespace mfk {

// A batch and the tensors that it writes. The caller sets the counts. There are no designated
// initialisers, because CUDA is compiled as C++17: not every CMake knows that nvcc supports C++20.
struct AssignmentTensors {
  Tensor assignment, status;
  assignment::Batch batch{};

  AssignmentTensors(const Tensor& cost, bool maximize, bool strict)
      : assignment(checked_result(cost)),
        status(torch::stable::new_empty(cost, {cost.size(0)}, ScalarType::Int)) {
    batch.cost = cost.const_data_ptr();
    batch.element = element_of("cost", cost);
    batch.batch = cost.size(0);
    batch.rows = cost.size(1);
    batch.columns = cost.size(2);
    batch.batch_stride = cost.stride(0);
    batch.row_stride = cost.stride(1);
    batch.column_stride = cost.stride(2);
    batch.maximize = maximize;
    batch.strict = strict;
    batch.substitute = true;
    batch.assignment = assignment.mutable_data_ptr<int64_t>();
    batch.status = status.mutable_data_ptr<int32_t>();
  }

 private:
  static Tensor checked_result(const Tensor& cost) {
    check_shape("cost", cost, {"B", "R", "C"});
    check_memory("cost", cost);
    check_at_most("cost: problems", cost.size(0), kMostProblems);
    check_at_most("cost: rows", cost.size(1), kMostRows);
    check_at_most("cost: columns", cost.size(2), kMostRows);
    return torch::stable::new_empty(cost, {cost.size(0), cost.size(1)}, ScalarType::Long);
  }
};

}  // namespace mfk
