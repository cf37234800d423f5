// The tensor operators `mask_loss` and `mask_loss_backward` on the CPU.
#include <algorithm>
#include <tuple>

#include "cpu/common/tensors.h"
#include "cpu/mask_loss/plan.h"

namespace {

using mfk::cpu::MaskLoss;
using mfk::cpu::OptionalTensor;
using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;

// The loss, and the memory that its targets are read from.
struct StoredLoss {
  mfk::cpu::Masks predicted;
  Tensor assignment;
  mfk::cpu::StoredSegments segments;
  MaskLoss loss{};

  StoredLoss(const Tensor& embed, const OptionalTensor& features, const OptionalTensor& label_map,
             const OptionalTensor& masks, const Tensor& counts, const Tensor& given_assignment,
             double alpha, double gamma)
      : predicted(mfk::cpu::masks_of(embed, features)),
        assignment(checked_assignment(given_assignment, predicted)),
        segments(label_map, masks, counts, assignment.size(2), predicted.images) {
    mfk::check_focal(alpha, gamma);
    check_pixels(predicted);
    loss.masks = predicted;
    loss.segments = segments.segments;
    loss.assignment = assignment.const_data_ptr<int64_t>();
    loss.alpha = alpha;
    loss.gamma = gamma;
    loss.wide = mfk::cpu::is_wide(embed) || (features.has_value() && mfk::cpu::is_wide(*features));
  }

  // Whether any segment has a query. Without one there is nothing to compute.
  bool matched() const {
    const int64_t* end = loss.assignment + assignment.numel();
    return segments.total > 0 &&
           std::any_of(loss.assignment, end, [](int64_t query) { return query >= 0; });
  }

  ScalarType type() const { return loss.wide ? ScalarType::Double : ScalarType::Float; }

 private:
  static Tensor checked_assignment(const Tensor& given, const mfk::cpu::Masks& masks) {
    const Tensor assignment = mfk::cpu::contiguous("assignment", given);
    mfk::check_shape("assignment", assignment, {masks.layers, masks.images, "T"});
    mfk::check_type("assignment", assignment, ScalarType::Long);
    const int64_t* queries = assignment.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < assignment.numel(); ++i) {
      STD_TORCH_CHECK(queries[i] >= -1 && queries[i] < masks.queries, "assignment holds query ",
                      queries[i], ", expected -1 to ", masks.queries - 1);
    }
    return assignment;
  }
};

std::tuple<Tensor, Tensor, Tensor> mask_loss(const Tensor& embed, const OptionalTensor& features,
                                             const OptionalTensor& label_map,
                                             const OptionalTensor& masks, const Tensor& counts,
                                             const Tensor& assignment, double alpha, double gamma) {
  const StoredLoss stored(embed, features, label_map, masks, counts, assignment, alpha, gamma);
  MaskLoss loss = stored.loss;
  const int64_t layers = loss.masks.layers, images = loss.masks.images;
  const int64_t segments = loss.segments.max_count;
  const ScalarType type = stored.type();
  Tensor focal = torch::stable::new_zeros(embed, {layers, images, segments}, type);
  Tensor dice = torch::stable::new_zeros(embed, {layers, images, segments}, type);
  Tensor sums = torch::stable::new_zeros(embed, {layers, images, segments, 3}, type);
  if (!stored.matched()) return {focal, dice, sums};
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
  const StoredLoss stored(embed, features, label_map, masks, counts, assignment, alpha, gamma);
  MaskLoss loss = stored.loss;
  const ScalarType type = stored.type();
  const int64_t layers = loss.masks.layers, images = loss.masks.images;
  const int64_t segments = loss.segments.max_count;
  const Tensor by_focal =
      mfk::cpu::saved("grad_focal", grad_focal, type, {layers, images, segments});
  const Tensor by_dice = mfk::cpu::saved("grad_dice", grad_dice, type, {layers, images, segments});
  const Tensor saved = mfk::cpu::saved("sums", sums, type, {layers, images, segments, int64_t{3}});
  loss.grad_focal = by_focal.const_data_ptr();
  loss.grad_dice = by_dice.const_data_ptr();
  loss.sums = const_cast<void*>(saved.const_data_ptr());
  Tensor grad_embed = embed_needed ? torch::stable::new_zeros(embed, embed.sizes())
                                   : torch::stable::new_empty(embed, {0});
  const Tensor& like = features.has_value() ? *features : embed;
  const bool wanted = features_needed && features.has_value();
  if (!stored.matched()) {
    return {grad_embed, wanted ? torch::stable::new_zeros(like, like.sizes())
                               : torch::stable::new_empty(like, {0})};
  }
  Tensor grad_features =
      wanted ? torch::stable::new_empty(like, like.sizes()) : torch::stable::new_empty(like, {0});
  // Without channels there is nothing to write.
  loss.grad_embed = grad_embed.numel() > 0 ? grad_embed.mutable_data_ptr() : nullptr;
  loss.grad_features = grad_features.numel() > 0 ? grad_features.mutable_data_ptr() : nullptr;
  mfk::cpu::mask_loss_backward(loss, mfk::cpu::threads());
  return {grad_embed, grad_features};
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) {
  m.impl("mask_loss", TORCH_BOX(&mask_loss));
  m.impl("mask_loss_backward", TORCH_BOX(&mask_loss_backward));
}

}  // namespace
