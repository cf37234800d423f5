// From the tensors of the operator `assignment` to a batch of problems, for CPU and GPU.
#pragma once

#include <optional>
#include <tuple>

#include "core/assignment_batch.h"
#include "core/extent.h"
#include "tensors/checks.h"

namespace mfk {

// A batch and the tensors that it writes. The counts are up to the device.
struct AssignmentTensors {
  Tensor assignment, status;
  assignment::Batch batch;

  AssignmentTensors(const Tensor& cost, bool maximize, bool strict)
      : assignment(checked_result(cost)),
        status(torch::stable::new_empty(cost, {cost.size(0)}, ScalarType::Int)),
        batch{
            .cost = cost.const_data_ptr(),
            .element = element_of("cost", cost),
            .batch = cost.size(0),
            .rows = cost.size(1),
            .columns = cost.size(2),
            .batch_stride = cost.stride(0),
            .row_stride = cost.stride(1),
            .column_stride = cost.stride(2),
            .row_counts = nullptr,
            .column_counts = nullptr,
            .maximize = maximize,
            .strict = strict,
            .substitute = true,
            .assignment = assignment.mutable_data_ptr<int64_t>(),
            .status = status.mutable_data_ptr<int32_t>(),
        } {}

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
