// The tensor operator `assignment` on the CPU.
#include <cstdint>
#include <optional>
#include <tuple>

#include "cpu/assignment/plan.h"
#include "tensors/assignment_batch.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const int64_t* checked_counts(const char* name, const std::optional<Tensor>& counts, int64_t batch,
                              int64_t limit) {
  if (!counts.has_value()) return nullptr;
  STD_TORCH_CHECK(counts->is_cpu() && counts->scalar_type() == ScalarType::Long &&
                      counts->dim() == 1 && counts->size(0) == batch && counts->is_contiguous(),
                  name, " must be a contiguous int64 CPU tensor of shape [", batch, "], got ",
                  mfk::text(*counts));
  const int64_t* values = counts->const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b) {
    STD_TORCH_CHECK(values[b] >= 0 && values[b] <= limit, name, "[", b, "] is ", values[b],
                    ", expected 0 to ", limit);
  }
  return values;
}

std::tuple<Tensor, Tensor> assignment(const Tensor& cost, const std::optional<Tensor>& row_counts,
                                      const std::optional<Tensor>& col_counts, bool maximize,
                                      bool strict) {
  mfk::AssignmentTensors tensors(cost, maximize, strict);
  mfk::assignment::Batch& batch = tensors.batch;
  batch.row_counts = checked_counts("row_counts", row_counts, batch.batch, batch.rows);
  batch.column_counts = checked_counts("col_counts", col_counts, batch.batch, batch.columns);
  if (batch.batch > 0) {
    mfk::cpu::solve_assignments(batch, static_cast<int>(torch::stable::get_num_threads()));
  }
  return {tensors.assignment, tensors.status};
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) { m.impl("assignment", TORCH_BOX(&assignment)); }

}  // namespace
