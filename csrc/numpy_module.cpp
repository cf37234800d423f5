// NumPy entry points and what the build knows about itself. No tensors here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/assignment.h"
#include "cpu/assignment.h"
#include "cpu/instruction_set.h"

namespace py = pybind11;

namespace {

using mfk::cpu::Element;
namespace assignment = mfk::assignment;

Element element_of(const py::array& cost) {
  switch (cost.dtype().itemsize()) {
    case 2:
      return Element::kHalf;
    case 4:
      return Element::kFloat;
    default:
      return Element::kDouble;
  }
}

// `cost` is a matrix of native float16, float32 or float64 (the Python side sees to it).
std::pair<py::array_t<int64_t>, py::array_t<int64_t>> linear_sum_assignment(const py::array& cost,
                                                                            bool maximize) {
  if (cost.ndim() != 2 || cost.dtype().kind() != 'f' || cost.dtype().itemsize() > 8) {
    throw std::invalid_argument("cost must be a float16, float32 or float64 matrix");
  }
  const int64_t rows = cost.shape(0), columns = cost.shape(1);
  const int64_t item = cost.itemsize();
  if (rows > 0 && columns > 0 && (cost.strides(0) % item != 0 || cost.strides(1) % item != 0)) {
    throw std::invalid_argument("cost has strides that are no multiples of its item size");
  }
  std::vector<int64_t> column_of_row(static_cast<std::size_t>(rows));
  int32_t status = 0;
  const mfk::cpu::AssignmentBatch batch{
      cost.data(),
      element_of(cost),
      1,
      rows,
      columns,
      0,
      cost.strides(0) / item,
      cost.strides(1) / item,
      nullptr,
      nullptr,
      maximize,
      /*strict=*/true,
      /*substitute=*/false,
      column_of_row.data(),
      &status,
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
  m.def("build_info", &build_info);
}
