// The tensor operators of focal and dice loss on given logits, on the CPU.
#include <cstdint>
#include <tuple>

#include "cpu/focal_dice.h"
#include "cpu/tensors.h"

namespace {

using mfk::cpu::FocalDice;
using mfk::cpu::FocalLoss;
using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;

ScalarType type_of(const FocalDice& loss) {
  return loss.wide ? ScalarType::Double : ScalarType::Float;
}

// Both must be contiguous and outlive the result.
FocalDice pair_of(const Tensor& logits, const Tensor& targets, double alpha, double gamma) {
  STD_TORCH_CHECK(targets.is_cpu(), "targets must be on the CPU");
  FocalDice loss{};
  loss.logits = logits.const_data_ptr();
  loss.logits_element = mfk::cpu::element_of("logits", logits);
  loss.targets = targets.const_data_ptr();
  loss.targets_are_bool = targets.scalar_type() == ScalarType::Bool;
  if (!loss.targets_are_bool) {
    loss.targets_element = mfk::cpu::element_of("targets", targets);
  }
  loss.alpha = alpha;
  loss.gamma = gamma;
  loss.wide = mfk::cpu::is_wide(logits);
  return loss;
}

FocalDice rows_of(const Tensor& logits, const Tensor& targets, double alpha, double gamma) {
  STD_TORCH_CHECK(logits.dim() == 2 && targets.dim() == 2 && targets.size(0) == logits.size(0) &&
                      targets.size(1) == logits.size(1),
                  "logits and targets must both be [M, P]");
  FocalDice loss = pair_of(logits, targets, alpha, gamma);
  loss.masks = logits.size(0);
  loss.elements = logits.size(1);
  return loss;
}

FocalDice images_of(const Tensor& logits, const Tensor& targets, const Tensor& points, double alpha,
                    double gamma) {
  STD_TORCH_CHECK(logits.dim() == 3 && targets.dim() == 3 && points.dim() == 3 &&
                      targets.size(0) == logits.size(0) && points.size(0) == logits.size(0) &&
                      points.size(2) == 2,
                  "logits must be [M, h, w], targets [M, H, W] and points [M, P, 2]");
  FocalDice loss = pair_of(logits, targets, alpha, gamma);
  STD_TORCH_CHECK(points.is_cpu() && points.scalar_type() == type_of(loss),
                  "points must be on the CPU in the type of the losses");
  loss.masks = logits.size(0);
  loss.elements = points.size(1);
  loss.points = points.const_data_ptr();
  loss.height = logits.size(1);
  loss.width = logits.size(2);
  loss.target_height = targets.size(1);
  loss.target_width = targets.size(2);
  STD_TORCH_CHECK(loss.height * loss.width > 0 && loss.target_height * loss.target_width > 0,
                  "logits and targets must have pixels");
  STD_TORCH_CHECK(
      loss.height * loss.width <= INT32_MAX && loss.target_height * loss.target_width <= INT32_MAX,
      "a mask must have fewer than 2^31 pixels");
  return loss;
}

std::tuple<Tensor, Tensor, Tensor> run(FocalDice loss, const Tensor& like) {
  Tensor focal = torch::stable::new_empty(like, {loss.masks}, type_of(loss));
  Tensor dice = torch::stable::new_empty(like, {loss.masks}, type_of(loss));
  Tensor sums = torch::stable::new_empty(like, {loss.masks, 3}, type_of(loss));
  loss.focal = focal.mutable_data_ptr();
  loss.dice = dice.mutable_data_ptr();
  loss.sums = sums.mutable_data_ptr();
  mfk::cpu::focal_dice(loss, mfk::cpu::threads());
  return {focal, dice, sums};
}

Tensor run_backward(FocalDice loss, const Tensor& grad_focal, const Tensor& grad_dice,
                    const Tensor& sums, const Tensor& logits) {
  const Tensor by_focal = torch::stable::contiguous(grad_focal);
  const Tensor by_dice = torch::stable::contiguous(grad_dice);
  const Tensor saved = torch::stable::contiguous(sums);
  for (const Tensor* tensor : {&by_focal, &by_dice, &saved}) {
    const int64_t each = tensor == &saved ? 3 : 1;
    STD_TORCH_CHECK(tensor->is_cpu() && tensor->scalar_type() == type_of(loss) &&
                        tensor->numel() == each * loss.masks,
                    "grad_focal, grad_dice and sums must fit the losses in type and size");
  }
  loss.grad_focal = by_focal.const_data_ptr();
  loss.grad_dice = by_dice.const_data_ptr();
  loss.sums = const_cast<void*>(saved.const_data_ptr());
  Tensor grad_logits = torch::stable::new_empty(logits, logits.sizes());
  loss.grad_logits = grad_logits.mutable_data_ptr();
  mfk::cpu::focal_dice_backward(loss, mfk::cpu::threads());
  return grad_logits;
}

std::tuple<Tensor, Tensor, Tensor> focal_dice(const Tensor& logits, const Tensor& targets,
                                              double alpha, double gamma) {
  const Tensor x = torch::stable::contiguous(logits), y = torch::stable::contiguous(targets);
  return run(rows_of(x, y, alpha, gamma), x);
}

Tensor focal_dice_backward(const Tensor& grad_focal, const Tensor& grad_dice, const Tensor& sums,
                           const Tensor& logits, const Tensor& targets, double alpha,
                           double gamma) {
  const Tensor x = torch::stable::contiguous(logits), y = torch::stable::contiguous(targets);
  return run_backward(rows_of(x, y, alpha, gamma), grad_focal, grad_dice, sums, x);
}

std::tuple<Tensor, Tensor, Tensor> point_loss(const Tensor& logits, const Tensor& targets,
                                              const Tensor& points, double alpha, double gamma) {
  const Tensor x = torch::stable::contiguous(logits), y = torch::stable::contiguous(targets);
  const Tensor at = torch::stable::contiguous(points);
  return run(images_of(x, y, at, alpha, gamma), x);
}

Tensor point_loss_backward(const Tensor& grad_focal, const Tensor& grad_dice, const Tensor& sums,
                           const Tensor& logits, const Tensor& targets, const Tensor& points,
                           double alpha, double gamma) {
  const Tensor x = torch::stable::contiguous(logits), y = torch::stable::contiguous(targets);
  const Tensor at = torch::stable::contiguous(points);
  return run_backward(images_of(x, y, at, alpha, gamma), grad_focal, grad_dice, sums, x);
}

FocalLoss elements_of(const Tensor& logits, const Tensor& targets, double alpha, double gamma) {
  STD_TORCH_CHECK(targets.numel() == logits.numel(), "targets must have the shape of logits");
  FocalLoss loss{};
  loss.pair = pair_of(logits, targets, alpha, gamma);
  loss.pair.masks = 1;
  loss.pair.elements = logits.numel();
  return loss;
}

Tensor sigmoid_focal_loss(const Tensor& logits, const Tensor& targets, double alpha, double gamma) {
  const Tensor x = torch::stable::contiguous(logits), y = torch::stable::contiguous(targets);
  FocalLoss loss = elements_of(x, y, alpha, gamma);
  Tensor losses = torch::stable::new_empty(x, x.sizes());
  loss.losses = losses.mutable_data_ptr();
  mfk::cpu::sigmoid_focal_loss(loss, mfk::cpu::threads());
  return losses;
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad_losses, const Tensor& logits,
                                   const Tensor& targets, double alpha, double gamma) {
  const Tensor x = torch::stable::contiguous(logits), y = torch::stable::contiguous(targets);
  const Tensor factors = torch::stable::contiguous(grad_losses);
  FocalLoss loss = elements_of(x, y, alpha, gamma);
  STD_TORCH_CHECK(
      factors.is_cpu() && factors.scalar_type() == x.scalar_type() && factors.numel() == x.numel(),
      "grad_losses must have the type and shape of logits");
  Tensor grad_logits = torch::stable::new_empty(x, x.sizes());
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
