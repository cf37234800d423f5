// The tensor operators `sample_points` and `sample_points_backward` on the CPU.
#include "cpu/sample_points/plan.h"

#include "cpu/common/tensors.h"

namespace {

using mfk::cpu::SamplePointsProblem;
using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;

// Points must be contiguous, and so must images for the forward pass; both must outlive the result.
SamplePointsProblem problem_of(const Tensor& images, const Tensor& points) {
  mfk::check_shape("images", images, {"M", "h", "w"});
  mfk::cpu::check_images("images", images);
  mfk::check_shape("points", points, {"M", "P", int64_t{2}});
  STD_TORCH_CHECK(points.size(0) == images.size(0) || points.size(0) == 1, "points must be [",
                  images.size(0), ", P, 2] or [1, P, 2], got ", mfk::text(points));
  SamplePointsProblem problem{};
  problem.images = images.const_data_ptr();
  problem.images_are_bool = images.scalar_type() == ScalarType::Bool;
  if (!problem.images_are_bool) problem.element = mfk::element_of("images", images);
  problem.is_double = mfk::cpu::is_double(points);
  if (!problem.is_double) mfk::check_type("points", points, ScalarType::Float);
  problem.count = images.size(0);
  problem.height = images.size(1);
  problem.width = images.size(2);
  problem.points = points.const_data_ptr();
  problem.shared = points.size(0) != problem.count;
  problem.points_per_image = points.size(1);
  return problem;
}

Tensor sample_points(const Tensor& images, const Tensor& points) {
  const Tensor x = mfk::cpu::contiguous("images", images);
  const Tensor at = mfk::cpu::contiguous("points", points);
  SamplePointsProblem problem = problem_of(x, at);
  Tensor values = mfk::cpu::new_result(at, {problem.count, problem.points_per_image});
  problem.values = values.mutable_data_ptr();
  mfk::cpu::sample_points(problem, mfk::cpu::threads());
  return values;
}

Tensor sample_points_backward(const Tensor& grad_values, const Tensor& images,
                              const Tensor& points) {
  mfk::cpu::check_argument("images", images);
  const Tensor at = mfk::cpu::contiguous("points", points);
  SamplePointsProblem problem = problem_of(images, at);
  STD_TORCH_CHECK(!problem.images_are_bool, "images of bool have no gradient");
  const Tensor grad = mfk::cpu::saved("grad_values", grad_values, at.scalar_type(),
                                      {problem.count, problem.points_per_image});
  problem.values = const_cast<void*>(grad.const_data_ptr());
  Tensor grad_images = mfk::cpu::new_result(images, images.sizes());
  problem.grad_images = grad_images.mutable_data_ptr();
  mfk::cpu::sample_points_backward(problem, mfk::cpu::threads());
  return grad_images;
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) {
  m.impl("sample_points", TORCH_BOX(&sample_points));
  m.impl("sample_points_backward", TORCH_BOX(&sample_points_backward));
}

}  // namespace
