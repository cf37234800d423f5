// The tensor operator `assignment` on the CPU.
#include "cpu/assignment/plan.h"

#include <cstdint>
#include <optional>
#include <tuple>

#include "tensor_checks.h"

namespace {

using mfk::cpu::AssignmentBatch;
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
  mfk::check_shape("cost", cost, {"B", "R", "C"});
  mfk::check_memory("cost", cost);
  const int64_t batch = cost.size(0), rows = cost.size(1), columns = cost.size(2);
  mfk::check_at_most("cost: problems", batch, mfk::kMostProblems);
  mfk::check_at_most("cost: rows", rows, mfk::kMostRows);
  mfk::check_at_most("cost: columns", columns, mfk::kMostRows);
  Tensor result = torch::stable::new_empty(cost, {batch, rows}, ScalarType::Long);
  Tensor status = torch::stable::new_empty(cost, {batch}, ScalarType::Int);
  const AssignmentBatch work{
      cost.const_data_ptr(),
      mfk::element_of("cost", cost),
      batch,
      rows,
      columns,
      cost.stride(0),
      cost.stride(1),
      cost.stride(2),
      checked_counts("row_counts", row_counts, batch, rows),
      checked_counts("col_counts", col_counts, batch, columns),
      maximize,
      strict,
      /*substitute=*/true,
      result.mutable_data_ptr<int64_t>(),
      status.mutable_data_ptr<int32_t>(),
  };
  if (batch > 0) {
    mfk::cpu::solve_assignments(work, static_cast<int>(torch::stable::get_num_threads()));
  }
  return {result, status};
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) { m.impl("assignment", TORCH_BOX(&assignment)); }

}  // namespace
