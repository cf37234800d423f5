// The tensor operators `mask_loss` and `mask_loss_backward` on the CPU.
#include <tuple>

#include "cpu/mask_loss.h"
#include "cpu/tensors.h"

namespace {

using mfk::cpu::MaskLoss;
using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Contiguous versions of the arguments that are read without strides.
struct Targets {
  OptionalTensor label_map, masks;
  Tensor counts, assignment;

  Targets(const OptionalTensor& label_map, const OptionalTensor& masks, const Tensor& counts,
          const Tensor& assignment)
      : label_map(mfk::cpu::contiguous(label_map)),
        masks(mfk::cpu::contiguous(masks)),
        counts(torch::stable::contiguous(counts)),
        assignment(torch::stable::contiguous(assignment)) {}
};

MaskLoss loss_of(const Tensor& embed, const OptionalTensor& features, const Targets& targets,
                 double alpha, double gamma) {
  MaskLoss loss{};
  loss.masks = mfk::cpu::masks_of(embed, features);
  const mfk::cpu::Masks& masks = loss.masks;
  const Tensor& assignment = targets.assignment;
  STD_TORCH_CHECK(assignment.is_cpu() && assignment.scalar_type() == ScalarType::Long &&
                      assignment.dim() == 3 && assignment.size(0) == masks.layers &&
                      assignment.size(1) == masks.images,
                  "assignment must be an int64 CPU tensor [", masks.layers, ", ", masks.images,
                  ", T]");
  loss.segments = mfk::cpu::segments_of(targets.label_map, targets.masks, targets.counts,
                                        assignment.size(2), masks.images);
  loss.assignment = assignment.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < assignment.numel(); ++i) {
    STD_TORCH_CHECK(loss.assignment[i] < masks.queries, "assignment holds query ",
                    loss.assignment[i], ", expected less than ", masks.queries);
  }
  loss.alpha = alpha;
  loss.gamma = gamma;
  loss.wide = mfk::cpu::is_wide(embed) || (features.has_value() && mfk::cpu::is_wide(*features));
  return loss;
}

std::tuple<Tensor, Tensor, Tensor> mask_loss(const Tensor& embed, const OptionalTensor& features,
                                             const OptionalTensor& label_map,
                                             const OptionalTensor& masks, const Tensor& counts,
                                             const Tensor& assignment, double alpha, double gamma) {
  const Targets targets(label_map, masks, counts, assignment);
  MaskLoss loss = loss_of(embed, features, targets, alpha, gamma);
  const int64_t layers = loss.masks.layers, images = loss.masks.images;
  const int64_t segments = loss.segments.max_count;
  const ScalarType type = loss.wide ? ScalarType::Double : ScalarType::Float;
  Tensor focal = torch::stable::new_empty(embed, {layers, images, segments}, type);
  Tensor dice = torch::stable::new_empty(embed, {layers, images, segments}, type);
  Tensor sums = torch::stable::new_empty(embed, {layers, images, segments, 3}, type);
  loss.focal = focal.mutable_data_ptr();
  loss.dice = dice.mutable_data_ptr();
  loss.sums = sums.mutable_data_ptr();
  mfk::cpu::mask_loss(loss, mfk::cpu::threads());
  return {focal, dice, sums};
}

std::tuple<Tensor, Tensor> mask_loss_backward(const Tensor& grad_focal, const Tensor& grad_dice,
                                              const Tensor& sums, const Tensor& embed,
                                              const OptionalTensor& features,
                                              const OptionalTensor& label_map,
                                              const OptionalTensor& masks, const Tensor& counts,
                                              const Tensor& assignment, double alpha, double gamma,
                                              bool embed_needed, bool features_needed) {
  const Targets targets(label_map, masks, counts, assignment);
  MaskLoss loss = loss_of(embed, features, targets, alpha, gamma);
  const ScalarType type = loss.wide ? ScalarType::Double : ScalarType::Float;
  const Tensor by_focal = torch::stable::contiguous(grad_focal);
  const Tensor by_dice = torch::stable::contiguous(grad_dice);
  const Tensor saved = torch::stable::contiguous(sums);
  for (const Tensor* tensor : {&by_focal, &by_dice, &saved}) {
    const int64_t each = tensor == &saved ? 3 : 1;
    STD_TORCH_CHECK(tensor->is_cpu() && tensor->scalar_type() == type &&
                        tensor->numel() == each * targets.assignment.numel(),
                    "grad_focal, grad_dice and sums must fit the losses in type and size");
  }
  loss.grad_focal = by_focal.const_data_ptr();
  loss.grad_dice = by_dice.const_data_ptr();
  loss.sums = const_cast<void*>(saved.const_data_ptr());
  Tensor grad_embed = embed_needed ? torch::stable::new_zeros(embed, embed.sizes())
                                   : torch::stable::new_empty(embed, {0});
  const Tensor& like = features.has_value() ? *features : embed;
  const bool wanted = features_needed && features.has_value();
  Tensor grad_features =
      wanted ? torch::stable::new_empty(like, like.sizes()) : torch::stable::new_empty(like, {0});
  loss.grad_embed = embed_needed ? grad_embed.mutable_data_ptr() : nullptr;
  loss.grad_features = wanted ? grad_features.mutable_data_ptr() : nullptr;
  mfk::cpu::mask_loss_backward(loss, mfk::cpu::threads());
  return {grad_embed, grad_features};
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) {
  m.impl("mask_loss", TORCH_BOX(&mask_loss));
  m.impl("mask_loss_backward", TORCH_BOX(&mask_loss_backward));
}

}  // namespace
