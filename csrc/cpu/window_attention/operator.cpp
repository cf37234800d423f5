// The tensor operators `window_attention` and `window_attention_backward` on the CPU.
#include "cpu/window_attention/plan.h"

#include <tuple>

#include "cpu/common/tensors.h"

namespace {

using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;
using mfk::cpu::WindowAttentionProblem;

// The longest side of a window: each thread has scores of all pairs of tokens.
constexpr int64_t kMostWindow = 32;

// Checked arguments of both operators, contiguous.
struct Arguments {
  Tensor qkv, padding, bias;
  WindowAttentionProblem problem{};

  Arguments(const Tensor& given, const Tensor& given_padding, const Tensor& given_bias,
            int64_t window_height, int64_t window_width, int64_t shift_height, int64_t shift_width)
      : qkv(mfk::cpu::contiguous("qkv", given)) {
    mfk::check_shape("qkv", qkv, {"B", "h", "w", int64_t{3}, "H", "D"});
    problem.element = mfk::cpu::map_element("qkv", qkv);
    problem.images = qkv.size(0);
    problem.height = qkv.size(1);
    problem.width = qkv.size(2);
    problem.heads = qkv.size(4);
    problem.channels = qkv.size(5);
    mfk::cpu::check_channels("head", problem.channels);
    STD_TORCH_CHECK(qkv.numel() > 0, "qkv must have images, tokens and heads, got ",
                    mfk::text(qkv));
    mfk::check_at_most("the height of maps", problem.height, mfk::kMostSide);
    mfk::check_at_most("the width of maps", problem.width, mfk::kMostSide);
    set_window("height", window_height, shift_height, problem.window_height, problem.shift_height);
    set_window("width", window_width, shift_width, problem.window_width, problem.shift_width);
    padding = of_type("padding", given_padding, {int64_t{3}, problem.heads, problem.channels});
    bias = of_type("bias", given_bias, {problem.heads, tokens(), tokens()});
    problem.qkv = qkv.const_data_ptr();
    problem.padding = padding.const_data_ptr();
    problem.bias = bias.const_data_ptr();
  }

  int64_t tokens() const { return problem.window_height * problem.window_width; }
  ScalarType type() const { return mfk::cpu::type_of(mfk::cpu::is_double(qkv)); }

 private:
  static void set_window(const char* side, int64_t window, int64_t shift, int64_t& window_to,
                         int64_t& shift_to) {
    STD_TORCH_CHECK(window > 0 && window <= kMostWindow, "the ", side,
                    " of windows must be from 1 to ", kMostWindow, ", got ", window);
    STD_TORCH_CHECK(shift >= 0 && shift < window, "the shift of the ", side, " must be from 0 to ",
                    window - 1, ", got ", shift);
    window_to = window;
    shift_to = shift;
  }

  Tensor of_type(const char* name, const Tensor& given, const std::vector<mfk::Size>& sizes) const {
    const Tensor values = mfk::cpu::contiguous(name, given);
    mfk::check_shape(name, values, sizes);
    mfk::check_type(name, values, type());
    return values;
  }
};

std::tuple<Tensor, Tensor> window_attention(const Tensor& qkv, const Tensor& padding,
                                            const Tensor& bias, int64_t window_height,
                                            int64_t window_width, int64_t shift_height,
                                            int64_t shift_width) {
  Arguments arguments(qkv, padding, bias, window_height, window_width, shift_height, shift_width);
  WindowAttentionProblem& problem = arguments.problem;
  Tensor result = mfk::cpu::new_result(
      qkv, {problem.images, problem.height, problem.width, problem.heads, problem.channels});
  Tensor normalizer = mfk::cpu::new_result(
      qkv, {mfk::cpu::window_count(problem), problem.heads, int64_t{2}, arguments.tokens()},
      arguments.type());
  problem.result = result.mutable_data_ptr();
  problem.normalizer = normalizer.mutable_data_ptr();
  mfk::cpu::window_attention(problem, mfk::cpu::threads());
  return {result, normalizer};
}

std::tuple<Tensor, Tensor, Tensor> window_attention_backward(
    const Tensor& given_grad, const Tensor& given_normalizer, const Tensor& qkv,
    const Tensor& padding, const Tensor& bias, int64_t window_height, int64_t window_width,
    int64_t shift_height, int64_t shift_width) {
  Arguments arguments(qkv, padding, bias, window_height, window_width, shift_height, shift_width);
  WindowAttentionProblem& problem = arguments.problem;
  const Tensor grad_result = mfk::cpu::saved(
      "grad_result", given_grad, arguments.qkv.scalar_type(),
      {problem.images, problem.height, problem.width, problem.heads, problem.channels});
  const Tensor normalizer = mfk::cpu::saved(
      "normalizer", given_normalizer, arguments.type(),
      {mfk::cpu::window_count(problem), problem.heads, int64_t{2}, arguments.tokens()});
  const auto new_like = [](const Tensor& like) { return mfk::cpu::new_result(like, like.sizes()); };
  Tensor grad_qkv = new_like(arguments.qkv);
  Tensor grad_padding = new_like(arguments.padding);
  Tensor grad_bias = new_like(arguments.bias);
  problem.grad_result = grad_result.const_data_ptr();
  problem.normalizer = const_cast<void*>(normalizer.const_data_ptr());
  problem.grad_qkv = grad_qkv.mutable_data_ptr();
  problem.grad_padding = grad_padding.mutable_data_ptr();
  problem.grad_bias = grad_bias.mutable_data_ptr();
  mfk::cpu::window_attention_backward(problem, mfk::cpu::threads());
  return {grad_qkv, grad_padding, grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) {
  m.impl("window_attention", TORCH_BOX(&window_attention));
  m.impl("window_attention_backward", TORCH_BOX(&window_attention_backward));
}

}  // namespace
