// The tensor operator `assignment` on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>

#include "cpu/assignment.h"

namespace {

using mfk::cpu::AssignmentBatch;
using mfk::cpu::Element;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Element element_of(const Tensor& cost) {
  switch (cost.scalar_type()) {
    case ScalarType::Half:
      return Element::kHalf;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Float:
      return Element::kFloat;
    case ScalarType::Double:
      return Element::kDouble;
    default:
      STD_TORCH_CHECK(false, "cost must be float16, bfloat16, float32 or float64");
  }
}

const int64_t* checked_counts(const char* name, const std::optional<Tensor>& counts, int64_t batch,
                              int64_t limit) {
  if (!counts.has_value()) return nullptr;
  STD_TORCH_CHECK(counts->is_cpu() && counts->scalar_type() == ScalarType::Long &&
                      counts->dim() == 1 && counts->size(0) == batch && counts->is_contiguous(),
                  name, " must be a contiguous int64 CPU tensor of shape [", batch, "]");
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
  STD_TORCH_CHECK(cost.dim() == 3, "cost must be [B, R, C], got ", cost.dim(), " dimensions");
  const int64_t batch = cost.size(0), rows = cost.size(1), columns = cost.size(2);
  constexpr int64_t kLimit = std::numeric_limits<int32_t>::max() / 2;
  STD_TORCH_CHECK(rows <= kLimit && columns <= kLimit, "cost of ", rows, " x ", columns,
                  " is too large");
  Tensor result = torch::stable::new_empty(cost, {batch, rows}, ScalarType::Long);
  Tensor status = torch::stable::new_empty(cost, {batch}, ScalarType::Int);
  const AssignmentBatch work{
      cost.const_data_ptr(),
      element_of(cost),
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
