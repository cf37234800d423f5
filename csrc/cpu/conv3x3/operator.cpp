// The tensor operators `conv3x3` and `conv3x3_weight_grad` on the CPU.
#include "cpu/conv3x3/plan.h"

#include "cpu/common/tensors.h"

namespace {

using mfk::cpu::Conv3x3Problem;
using mfk::cpu::OptionalTensor;
using mfk::cpu::Tensor;

Conv3x3Problem problem_of(const Tensor& x, int64_t out_channels) {
  Conv3x3Problem problem{};
  problem.element = mfk::cpu::map_element("x", x);
  problem.images = x.size(0);
  problem.in_channels = x.size(1);
  problem.height = x.size(2);
  problem.width = x.size(3);
  problem.out_channels = out_channels;
  problem.x = x.const_data_ptr();
  mfk::cpu::check_channels("input", problem.in_channels);
  mfk::cpu::check_channels("output", problem.out_channels);
  return problem;
}

void set_weight(Conv3x3Problem& problem, const Tensor& weight) {
  problem.weight = const_cast<void*>(weight.const_data_ptr());
  problem.weight_stride = {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
}

Tensor conv3x3(const Tensor& given, const Tensor& weight, const OptionalTensor& given_bias) {
  mfk::cpu::check_argument("x", given);
  mfk::check_shape("x", given, {"B", "C", "h", "w"});
  const Tensor x = mfk::cpu::channels_last(given);
  mfk::cpu::check_argument("weight", weight);
  mfk::check_shape("weight", weight, {"O", given.size(1), int64_t{3}, int64_t{3}});
  Conv3x3Problem problem = problem_of(x, weight.size(0));
  mfk::check_type("weight", weight, mfk::cpu::type_of(mfk::cpu::is_double(x)));
  set_weight(problem, weight);
  const OptionalTensor bias = mfk::cpu::contiguous("bias", given_bias);
  if (bias.has_value()) {
    mfk::check_shape("bias", *bias, {problem.out_channels});
    mfk::check_type("bias", *bias, weight.scalar_type());
    problem.bias = bias->const_data_ptr();
  }
  Tensor y = mfk::cpu::new_channels_last(
      x, {problem.images, problem.out_channels, problem.height, problem.width});
  problem.y = y.mutable_data_ptr();
  if (y.numel() > 0) mfk::cpu::conv3x3(problem, mfk::cpu::threads());
  return y;
}

Tensor conv3x3_weight_grad(const Tensor& given_grad, const Tensor& given) {
  mfk::cpu::check_argument("x", given);
  mfk::check_shape("x", given, {"B", "C", "h", "w"});
  const Tensor x = mfk::cpu::channels_last(given);
  mfk::cpu::check_on_cpu("grad_y", given_grad);
  mfk::check_shape("grad_y", given_grad, {given.size(0), "O", given.size(2), given.size(3)});
  const Tensor grad = mfk::cpu::channels_last(given_grad);
  mfk::check_type("grad_y", grad, x.scalar_type());
  Conv3x3Problem problem = problem_of(x, grad.size(1));
  problem.y = const_cast<void*>(grad.const_data_ptr());
  Tensor grad_weight = mfk::cpu::new_result(x, {problem.out_channels, problem.in_channels, 3, 3},
                                            mfk::cpu::type_of(mfk::cpu::is_double(x)));
  set_weight(problem, grad_weight);
  mfk::cpu::conv3x3_weight_grad(problem, mfk::cpu::threads());
  return grad_weight;
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&conv3x3));
  m.impl("conv3x3_weight_grad", TORCH_BOX(&conv3x3_weight_grad));
}

}  // namespace
