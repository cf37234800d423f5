// The tensor operators `group_norm` and `group_norm_backward` on the CPU.
#include "cpu/group_norm/plan.h"

#include <tuple>

#include "cpu/common/tensors.h"

namespace {

using mfk::cpu::GroupNormProblem;
using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;

// Checked arguments of both operators, contiguous and in the layouts that the kernels expect.
struct Arguments {
  Tensor x, weight, bias;
  GroupNormProblem problem{};

  Arguments(const Tensor& given, const Tensor& given_weight, const Tensor& given_bias,
            int64_t groups, bool relu) {
    mfk::cpu::check_argument("x", given);
    mfk::check_shape("x", given, {"B", "C", "h", "w"});
    x = mfk::cpu::channels_last(given);
    problem.element = mfk::cpu::map_element("x", x);
    problem.images = x.size(0);
    problem.channels = x.size(1);
    problem.pixels = x.size(2) * x.size(3);
    problem.groups = groups;
    problem.relu = relu;
    problem.x = x.const_data_ptr();
    mfk::cpu::check_channels("input", problem.channels);
    STD_TORCH_CHECK(groups > 0 && problem.channels % groups == 0, "groups must divide the ",
                    problem.channels, " channels, got ", groups);
    STD_TORCH_CHECK(x.numel() > 0, "x must have images and pixels, got ", mfk::text(x));
    weight = of_channels("weight", given_weight);
    bias = of_channels("bias", given_bias);
    problem.weight = weight.const_data_ptr();
    problem.bias = bias.const_data_ptr();
  }

  ScalarType type() const { return mfk::cpu::type_of(mfk::cpu::is_double(x)); }

  Tensor new_maps() const {
    return mfk::cpu::new_channels_last(x, {x.size(0), x.size(1), x.size(2), x.size(3)});
  }

 private:
  Tensor of_channels(const char* name, const Tensor& given) const {
    const Tensor values = mfk::cpu::contiguous(name, given);
    mfk::check_shape(name, values, {problem.channels});
    mfk::check_type(name, values, type());
    return values;
  }
};

std::tuple<Tensor, Tensor, Tensor> group_norm(const Tensor& x, const Tensor& weight,
                                              const Tensor& bias, int64_t groups, double eps,
                                              bool relu) {
  Arguments arguments(x, weight, bias, groups, relu);
  GroupNormProblem& problem = arguments.problem;
  Tensor y = arguments.new_maps();
  Tensor mean = mfk::cpu::new_result(x, {problem.images, groups}, arguments.type());
  Tensor inverse_std = mfk::cpu::new_result(x, {problem.images, groups}, arguments.type());
  problem.eps = eps;
  problem.y = y.mutable_data_ptr();
  problem.mean = mean.mutable_data_ptr();
  problem.inverse_std = inverse_std.mutable_data_ptr();
  mfk::cpu::group_norm(problem, mfk::cpu::threads());
  return {y, mean, inverse_std};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_backward(
    const Tensor& given_grad, const Tensor& given_mean, const Tensor& given_inverse_std,
    const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t groups, bool relu) {
  Arguments arguments(x, weight, bias, groups, relu);
  GroupNormProblem& problem = arguments.problem;
  mfk::cpu::check_on_cpu("grad_y", given_grad);
  mfk::check_shape("grad_y", given_grad, {x.size(0), x.size(1), x.size(2), x.size(3)});
  const Tensor grad_y = mfk::cpu::channels_last(given_grad);
  mfk::check_type("grad_y", grad_y, x.scalar_type());
  const std::vector<mfk::Size> sizes = {problem.images, groups};
  const Tensor mean = mfk::cpu::saved("mean", given_mean, arguments.type(), sizes);
  const Tensor inverse_std =
      mfk::cpu::saved("inverse_std", given_inverse_std, arguments.type(), sizes);
  Tensor grad_x = arguments.new_maps();
  Tensor grad_weight = mfk::cpu::new_result(x, {problem.channels}, arguments.type());
  Tensor grad_bias = mfk::cpu::new_result(x, {problem.channels}, arguments.type());
  problem.grad_y = grad_y.const_data_ptr();
  problem.mean = const_cast<void*>(mean.const_data_ptr());
  problem.inverse_std = const_cast<void*>(inverse_std.const_data_ptr());
  problem.grad_x = grad_x.mutable_data_ptr();
  problem.grad_weight = grad_weight.mutable_data_ptr();
  problem.grad_bias = grad_bias.mutable_data_ptr();
  mfk::cpu::group_norm_backward(problem, mfk::cpu::threads());
  return {grad_x, grad_weight, grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) {
  m.impl("group_norm", TORCH_BOX(&group_norm));
  m.impl("group_norm_backward", TORCH_BOX(&group_norm_backward));
}

}  // namespace
