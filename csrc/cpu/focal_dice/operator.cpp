// The tensor operators of the focal and dice loss of given logits, on the CPU.
#include <algorithm>
#include <cstdint>
#include <tuple>

#include "cpu/common/tensors.h"
#include "cpu/focal_dice/plan.h"

namespace {

using mfk::cpu::FocalDiceProblem;
using mfk::cpu::FocalLossProblem;
using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;

ScalarType type_of(const FocalDiceProblem& loss) { return mfk::cpu::type_of(loss.is_double); }

// Contiguous arguments, and the problem that points to their memory.
struct Pair {
  Tensor logits, targets;
  FocalDiceProblem loss{};

  // The caller checks that both have the same shape.
  Pair(const Tensor& given_logits, const Tensor& given_targets, double alpha, double gamma)
      : logits(mfk::cpu::contiguous("logits", given_logits)), targets(on_cpu(given_targets)) {
    mfk::check_focal(alpha, gamma);
    loss.logits = logits.const_data_ptr();
    loss.logits_element = mfk::element_of("logits", logits);
    loss.targets = targets.const_data_ptr();
    loss.targets_are_bool = targets.scalar_type() == ScalarType::Bool;
    if (!loss.targets_are_bool) {
      loss.targets_element = mfk::element_of("targets", targets);
    }
    loss.alpha = alpha;
    loss.gamma = gamma;
    loss.is_double = mfk::cpu::is_double(logits);
  }

 private:
  static Tensor on_cpu(const Tensor& targets) {
    mfk::cpu::check_on_cpu("targets", targets);
    return torch::stable::contiguous(targets);
  }
};

Pair rows_of(const Tensor& logits, const Tensor& targets, double alpha, double gamma) {
  mfk::check_shape("logits", logits, {"M", "P"});
  mfk::check_shape("targets", targets, {logits.size(0), logits.size(1)});
  Pair pair(logits, targets, alpha, gamma);
  pair.loss.masks = logits.size(0);
  pair.loss.elements = logits.size(1);
  return pair;
}

struct Images : Pair {
  Tensor points;

  Images(const Tensor& given_logits, const Tensor& given_targets, const Tensor& given_points,
         double alpha, double gamma)
      : Pair(given_logits, mfk::cpu::contiguous("targets", given_targets), alpha, gamma),
        points(mfk::cpu::contiguous("points", given_points)) {
    mfk::check_shape("logits", logits, {"M", "h", "w"});
    mfk::check_shape("targets", targets, {logits.size(0), "H", "W"});
    mfk::check_shape("points", points, {logits.size(0), "P", int64_t{2}});
    mfk::check_type("points", points, type_of(loss));
    mfk::cpu::check_images("logits", logits);
    mfk::cpu::check_images("targets", targets);
    loss.masks = logits.size(0);
    loss.elements = points.size(1);
    loss.at_points = true;
    loss.points = points.const_data_ptr();
    loss.height = logits.size(1);
    loss.width = logits.size(2);
    loss.target_height = targets.size(1);
    loss.target_width = targets.size(2);
  }
};

std::tuple<Tensor, Tensor, Tensor> run(FocalDiceProblem loss, const Tensor& like) {
  Tensor focal = torch::stable::new_empty(like, {loss.masks}, type_of(loss));
  Tensor dice = torch::stable::new_empty(like, {loss.masks}, type_of(loss));
  Tensor sums = torch::stable::new_empty(like, {loss.masks, 3}, type_of(loss));
  loss.focal = focal.mutable_data_ptr();
  loss.dice = dice.mutable_data_ptr();
  loss.sums = sums.mutable_data_ptr();
  if (loss.masks > 0) mfk::cpu::focal_dice(loss, mfk::cpu::threads());
  return {focal, dice, sums};
}

Tensor run_backward(FocalDiceProblem loss, const Tensor& grad_focal, const Tensor& grad_dice,
                    const Tensor& sums, const Tensor& logits) {
  const mfk::cpu::LossGradients given(grad_focal, grad_dice, sums, type_of(loss), {loss.masks});
  given.fill(loss);
  Tensor grad_logits = mfk::cpu::new_result(logits, logits.sizes());
  loss.grad_logits = grad_logits.mutable_data_ptr();
  if (grad_logits.numel() > 0) mfk::cpu::focal_dice_backward(loss, mfk::cpu::threads());
  return grad_logits;
}

std::tuple<Tensor, Tensor, Tensor> focal_dice(const Tensor& logits, const Tensor& targets,
                                              double alpha, double gamma) {
  const Pair pair = rows_of(logits, targets, alpha, gamma);
  return run(pair.loss, pair.logits);
}

Tensor focal_dice_backward(const Tensor& grad_focal, const Tensor& grad_dice, const Tensor& sums,
                           const Tensor& logits, const Tensor& targets, double alpha,
                           double gamma) {
  const Pair pair = rows_of(logits, targets, alpha, gamma);
  return run_backward(pair.loss, grad_focal, grad_dice, sums, pair.logits);
}

std::tuple<Tensor, Tensor, Tensor> point_loss(const Tensor& logits, const Tensor& targets,
                                              const Tensor& points, double alpha, double gamma) {
  const Images images(logits, targets, points, alpha, gamma);
  return run(images.loss, images.logits);
}

Tensor point_loss_backward(const Tensor& grad_focal, const Tensor& grad_dice, const Tensor& sums,
                           const Tensor& logits, const Tensor& targets, const Tensor& points,
                           double alpha, double gamma) {
  const Images images(logits, targets, points, alpha, gamma);
  return run_backward(images.loss, grad_focal, grad_dice, sums, images.logits);
}

void check_same_shape(const char* name, const Tensor& tensor, const Tensor& logits) {
  mfk::cpu::check_on_cpu(name, tensor);
  mfk::cpu::check_on_cpu("logits", logits);
  const auto sizes = tensor.sizes(), expected = logits.sizes();
  STD_TORCH_CHECK(
      sizes.size() == expected.size() && std::equal(sizes.begin(), sizes.end(), expected.begin()),
      name, " must have the shape of logits, ", mfk::text(logits), ", got ", mfk::text(tensor));
}

Pair elements_of(const Tensor& logits, const Tensor& targets, double alpha, double gamma) {
  check_same_shape("targets", targets, logits);
  Pair pair(logits, targets, alpha, gamma);
  pair.loss.masks = 1;
  pair.loss.elements = logits.numel();
  return pair;
}

Tensor sigmoid_focal_loss(const Tensor& logits, const Tensor& targets, double alpha, double gamma) {
  const Pair pair = elements_of(logits, targets, alpha, gamma);
  FocalLossProblem loss{};
  loss.pair = pair.loss;
  Tensor losses = mfk::cpu::new_result(pair.logits, logits.sizes());
  loss.losses = losses.mutable_data_ptr();
  mfk::cpu::sigmoid_focal_loss(loss, mfk::cpu::threads());
  return losses;
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad_losses, const Tensor& logits,
                                   const Tensor& targets, double alpha, double gamma) {
  const Pair pair = elements_of(logits, targets, alpha, gamma);
  check_same_shape("grad_losses", grad_losses, logits);
  mfk::check_type("grad_losses", grad_losses, logits.scalar_type());
  const Tensor factors = torch::stable::contiguous(grad_losses);
  FocalLossProblem loss{};
  loss.pair = pair.loss;
  Tensor grad_logits = mfk::cpu::new_result(pair.logits, logits.sizes());
  loss.pair.grad_logits = grad_logits.mutable_data_ptr();
  loss.grad_losses = factors.const_data_ptr();
  mfk::cpu::sigmoid_focal_loss_backward(loss, mfk::cpu::threads());
  return grad_logits;
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) {
  m.impl("focal_dice", TORCH_BOX(&focal_dice));
  m.impl("focal_dice_backward", TORCH_BOX(&focal_dice_backward));
  m.impl("point_loss", TORCH_BOX(&point_loss));
  m.impl("point_loss_backward", TORCH_BOX(&point_loss_backward));
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace
