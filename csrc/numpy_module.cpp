// The NumPy entry points, and information about the build. No tensors are used here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/assignment.h"
#include "core/extent.h"
#include "cpu/assignment/plan.h"
#include "cpu/common/instruction_set.h"

namespace py = pybind11;

namespace {

using mfk::Element;
namespace assignment = mfk::assignment;

Element element_of(const py::array& cost) {
  const char kind = cost.dtype().kind();
  const auto size = cost.dtype().itemsize();
  if (kind == 'f' && size == 2) return Element::kHalf;
  if (kind == 'f' && size == 4) return Element::kFloat;
  if (kind == 'f' && size == 8) return Element::kDouble;
  throw std::invalid_argument("cost must be float16, float32 or float64");
}

int64_t stride(const py::array& cost, py::ssize_t axis) {
  if (cost.size() > 0 && cost.strides(axis) % cost.itemsize() != 0) {
    throw std::invalid_argument("cost has strides that are no multiples of its item size");
  }
  return cost.strides(axis) / cost.itemsize();
}

// Checks the size of the matrices, the last two axes, before memory is allocated for them.
void check_extent(const py::array& cost) {
  const py::ssize_t axes = cost.ndim();
  for (const py::ssize_t axis : {axes - 2, axes - 1}) {
    if (cost.shape(axis) > mfk::kMostRows) {
      throw std::invalid_argument("cost must have at most " + std::to_string(mfk::kMostRows) +
                                  " rows and columns, got " + std::to_string(cost.shape(axis)));
    }
  }
  std::vector<int64_t> sizes, strides;
  for (py::ssize_t axis = 0; axis < axes; ++axis) {
    sizes.push_back(cost.shape(axis));
    strides.push_back(stride(cost, axis));
  }
  if (mfk::is_inflated(axes, sizes.data(), strides.data(), cost.itemsize())) {
    throw std::invalid_argument(
        "cost is an expanded view that repeats its memory too often; copy it first");
  }
}

// Solves one problem. The Python side ensures that `cost` is floating point in native byte order.
std::pair<py::array_t<int64_t>, py::array_t<int64_t>> linear_sum_assignment(const py::array& cost,
                                                                            bool maximize) {
  if (cost.ndim() != 2) throw std::invalid_argument("cost must be a matrix");
  check_extent(cost);
  const int64_t rows = cost.shape(0), columns = cost.shape(1);
  if (rows == 0 || columns == 0) return {py::array_t<int64_t>(0), py::array_t<int64_t>(0)};
  std::vector<int64_t> column_of_row(static_cast<std::size_t>(rows));
  int32_t status = 0;
  const assignment::Batch batch{
      .cost = cost.data(),
      .element = element_of(cost),
      .batch = 1,
      .rows = rows,
      .columns = columns,
      .batch_stride = 0,
      .row_stride = stride(cost, 0),
      .column_stride = stride(cost, 1),
      .row_counts = nullptr,
      .column_counts = nullptr,
      .maximize = maximize,
      .strict = true,
      .substitute = false,
      .assignment = column_of_row.data(),
      .status = &status,
  };
  {
    const py::gil_scoped_release release;
    mfk::cpu::solve_assignments(batch, 1);
  }
  if (status & (assignment::kNan | assignment::kNegativeInfinity)) {
    throw std::invalid_argument("matrix contains invalid numeric entries");
  }
  if (status & assignment::kInfeasible) throw std::invalid_argument("cost matrix is infeasible");

  const int64_t pairs = rows < columns ? rows : columns;
  py::array_t<int64_t> row_indices(pairs), column_indices(pairs);
  int64_t* row_out = row_indices.mutable_data();
  int64_t* column_out = column_indices.mutable_data();
  for (int64_t i = 0; i < rows; ++i) {
    if (column_of_row[static_cast<std::size_t>(i)] < 0) continue;
    *row_out++ = i;
    *column_out++ = column_of_row[static_cast<std::size_t>(i)];
  }
  return {std::move(row_indices), std::move(column_indices)};
}

using Counts = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

// The tensor operator for NumPy arrays `[B, R, C]`; returns the assignment `[B, R]` and status
// `[B]`.
std::pair<py::array_t<int64_t>, py::array_t<int32_t>> batch_linear_assignment(
    const py::array& cost, const Counts& row_counts, const Counts& column_counts, bool maximize,
    bool strict, int threads) {
  if (cost.ndim() != 3) throw std::invalid_argument("cost must be [B, R, C]");
  check_extent(cost);
  const int64_t problems = cost.shape(0), rows = cost.shape(1), columns = cost.shape(2);
  if (row_counts.size() != problems || column_counts.size() != problems) {
    throw std::invalid_argument("row_counts and column_counts must be [B]");
  }
  for (int64_t b = 0; b < problems; ++b) {
    const int64_t r = row_counts.data()[b], c = column_counts.data()[b];
    if (r < 0 || r > rows || c < 0 || c > columns)
      throw std::invalid_argument("count out of range");
  }
  py::array_t<int64_t> result({problems, rows});
  py::array_t<int32_t> status(problems);
  const assignment::Batch batch{
      .cost = cost.data(),
      .element = element_of(cost),
      .batch = problems,
      .rows = rows,
      .columns = columns,
      .batch_stride = stride(cost, 0),
      .row_stride = stride(cost, 1),
      .column_stride = stride(cost, 2),
      .row_counts = row_counts.data(),
      .column_counts = column_counts.data(),
      .maximize = maximize,
      .strict = strict,
      .substitute = true,
      .assignment = result.mutable_data(),
      .status = status.mutable_data(),
  };
  {
    const py::gil_scoped_release release;
    if (problems > 0) mfk::cpu::solve_assignments(batch, threads);
  }
  return {std::move(result), std::move(status)};
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = MFK_COMPILER;
  info["build type"] = MFK_BUILD_TYPE;
  info["stable ABI of torch"] = MFK_TORCH_TARGET;
  info["built with torch"] = MFK_TORCH_VERSION;
  info["CUDA"] = MFK_CUDA;
  info["vector instructions"] = mfk::cpu::name(mfk::cpu::instruction_set());
  return info;
}

}  // namespace

PYBIND11_MODULE(_numpy, m) {
  m.doc() = "NumPy entry points of mfkernels.";
  m.def("linear_sum_assignment", &linear_sum_assignment, py::arg("cost"), py::arg("maximize"));
  m.def("batch_linear_assignment", &batch_linear_assignment, py::arg("cost"), py::arg("row_counts"),
        py::arg("column_counts"), py::arg("maximize"), py::arg("strict"), py::arg("threads"));
  m.def("build_info", &build_info);
}
