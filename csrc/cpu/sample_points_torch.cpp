// The tensor operators `sample_points` and `sample_points_backward` on the CPU.
#include "cpu/sample_points.h"

#include "cpu/tensors.h"

namespace {

using mfk::cpu::SamplePoints;
using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;

// Both must be contiguous and outlive the result.
SamplePoints task_of(const Tensor& images, const Tensor& points) {
  STD_TORCH_CHECK(images.dim() == 3 && points.dim() == 3 && points.size(2) == 2 &&
                      (points.size(0) == images.size(0) || points.size(0) == 1),
                  "images must be [M, h, w] and points [M, P, 2] or [1, P, 2]");
  SamplePoints task{};
  task.images = images.const_data_ptr();
  task.images_are_bool = images.scalar_type() == ScalarType::Bool;
  if (!task.images_are_bool) task.element = mfk::cpu::element_of("images", images);
  task.wide = mfk::cpu::is_wide(points);
  STD_TORCH_CHECK(points.is_cpu() && (task.wide || points.scalar_type() == ScalarType::Float),
                  "points must be float32 or float64 on the CPU");
  task.count = images.size(0);
  task.height = images.size(1);
  task.width = images.size(2);
  STD_TORCH_CHECK(task.height * task.width > 0 && task.height * task.width <= INT32_MAX,
                  "images must have pixels, fewer than 2^31");
  task.points = points.const_data_ptr();
  task.shared = points.size(0) != task.count;
  task.each = points.size(1);
  return task;
}

Tensor sample_points(const Tensor& images, const Tensor& points) {
  const Tensor x = torch::stable::contiguous(images), at = torch::stable::contiguous(points);
  SamplePoints task = task_of(x, at);
  Tensor values = torch::stable::new_empty(at, {task.count, task.each});
  task.values = values.mutable_data_ptr();
  mfk::cpu::sample_points(task, mfk::cpu::threads());
  return values;
}

Tensor sample_points_backward(const Tensor& grad_values, const Tensor& images,
                              const Tensor& points) {
  const Tensor at = torch::stable::contiguous(points);
  const Tensor grad = torch::stable::contiguous(grad_values);
  SamplePoints task = task_of(images, at);
  STD_TORCH_CHECK(!task.images_are_bool, "images of bool have no gradient");
  STD_TORCH_CHECK(grad.is_cpu() && grad.scalar_type() == at.scalar_type() &&
                      grad.numel() == task.count * task.each,
                  "grad_values must be [", task.count, ", ", task.each, "] in the type of points");
  task.values = const_cast<void*>(grad.const_data_ptr());
  Tensor grad_images = torch::stable::new_empty(images, images.sizes());
  task.grad_images = grad_images.mutable_data_ptr();
  mfk::cpu::sample_points_backward(task, mfk::cpu::threads());
  return grad_images;
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) {
  m.impl("sample_points", TORCH_BOX(&sample_points));
  m.impl("sample_points_backward", TORCH_BOX(&sample_points_backward));
}

}  // namespace
