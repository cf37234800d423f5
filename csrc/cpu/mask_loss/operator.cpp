// The tensor operators `mask_loss` and `mask_loss_backward` on the CPU.
#include <algorithm>
#include <tuple>

#include "cpu/common/tensors.h"
#include "cpu/mask_loss/plan.h"

namespace {

using mfk::cpu::MaskLossProblem;
using mfk::cpu::OptionalTensor;
using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;

// The problem, and the tensors that own the memory of its targets.
struct StoredProblem {
  mfk::cpu::MaskPredictions predictions;
  Tensor assignment;
  mfk::cpu::StoredSegments segments;
  MaskLossProblem problem{};

  StoredProblem(const Tensor& embed, const OptionalTensor& features,
                const OptionalTensor& label_map, const OptionalTensor& masks, const Tensor& counts,
                const Tensor& given_assignment, int64_t num_segments, double alpha, double gamma)
      : predictions(mfk::cpu::predictions_of(embed, features)),
        assignment(checked_assignment(given_assignment, predictions)),
        segments(label_map, masks, counts, assignment.size(2), predictions.images) {
    // A GPU allocates memory for num_segments, and cannot check this.
    STD_TORCH_CHECK(segments.total <= num_segments, "counts add up to ", segments.total,
                    ", more than num_segments, ", num_segments);
    mfk::check_focal(alpha, gamma);
    check_pixels(predictions);
    problem.predictions = predictions;
    problem.segments = segments.segments;
    problem.assignment = assignment.const_data_ptr<int64_t>();
    problem.alpha = alpha;
    problem.gamma = gamma;
    problem.is_double = mfk::cpu::is_double(embed) || mfk::cpu::is_double(features);
  }

  // Whether any segment has a query. Without one there is nothing to compute.
  bool matched() const {
    const int64_t* end = problem.assignment + assignment.numel();
    return segments.total > 0 &&
           std::any_of(problem.assignment, end, [](int64_t query) { return query >= 0; });
  }

  ScalarType type() const { return problem.is_double ? ScalarType::Double : ScalarType::Float; }

 private:
  static Tensor checked_assignment(const Tensor& given,
                                   const mfk::cpu::MaskPredictions& predictions) {
    const Tensor assignment = mfk::cpu::contiguous("assignment", given);
    mfk::check_shape("assignment", assignment, {predictions.layers, predictions.images, "T"});
    mfk::check_type("assignment", assignment, ScalarType::Long);
    const int64_t* queries = assignment.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < assignment.numel(); ++i) {
      STD_TORCH_CHECK(queries[i] >= -1 && queries[i] < predictions.queries,
                      "assignment holds query ", queries[i], ", expected -1 to ",
                      predictions.queries - 1);
    }
    return assignment;
  }
};

// `maps` are not kept: a CPU recomputes the pixels as fast as it would read the maps.
std::tuple<Tensor, Tensor, Tensor, Tensor> mask_loss(
    const Tensor& embed, const OptionalTensor& features, const OptionalTensor& label_map,
    const OptionalTensor& masks, const Tensor& counts, const Tensor& assignment,
    int64_t num_segments, double alpha, double gamma, bool /*keep_maps*/) {
  const StoredProblem stored(embed, features, label_map, masks, counts, assignment, num_segments,
                             alpha, gamma);
  MaskLossProblem problem = stored.problem;
  const int64_t layers = problem.predictions.layers, images = problem.predictions.images;
  const int64_t segments = problem.segments.max_count;
  const ScalarType type = stored.type();
  Tensor focal = torch::stable::new_zeros(embed, {layers, images, segments}, type);
  Tensor dice = torch::stable::new_zeros(embed, {layers, images, segments}, type);
  Tensor sums = torch::stable::new_zeros(embed, {layers, images, segments, 3}, type);
  Tensor maps = torch::stable::new_empty(embed, {0}, type);
  if (!stored.matched()) return {focal, dice, sums, maps};
  problem.focal = focal.mutable_data_ptr();
  problem.dice = dice.mutable_data_ptr();
  problem.sums = sums.mutable_data_ptr();
  mfk::cpu::mask_loss(problem, mfk::cpu::threads());
  return {focal, dice, sums, maps};
}

std::tuple<Tensor, Tensor> mask_loss_backward(
    const Tensor& grad_focal, const Tensor& grad_dice, const Tensor& sums, const Tensor& /*maps*/,
    const Tensor& embed, const OptionalTensor& features, const OptionalTensor& label_map,
    const OptionalTensor& masks, const Tensor& counts, const Tensor& assignment,
    int64_t num_segments, double alpha, double gamma, bool embed_needed, bool features_needed) {
  const StoredProblem stored(embed, features, label_map, masks, counts, assignment, num_segments,
                             alpha, gamma);
  MaskLossProblem problem = stored.problem;
  const int64_t layers = problem.predictions.layers, images = problem.predictions.images;
  const int64_t segments = problem.segments.max_count;
  const mfk::cpu::LossGradients given(grad_focal, grad_dice, sums, stored.type(),
                                      {layers, images, segments});
  given.fill(problem);
  Tensor grad_embed = embed_needed ? torch::stable::new_zeros(embed, embed.sizes())
                                   : torch::stable::new_empty(embed, {0});
  const Tensor& like = features.has_value() ? *features : embed;
  const bool needed = features_needed && features.has_value();
  // The memory format of the features, so that the backward pass before need not convert it.
  problem.channels_last = needed && like.stride(1) < like.stride(3);
  Tensor grad_features = !needed                 ? torch::stable::new_empty(like, {0})
                         : problem.channels_last ? mfk::cpu::new_channels_last(like, like.sizes())
                                                 : mfk::cpu::new_result(like, like.sizes());
  if (!stored.matched()) return {grad_embed, torch::stable::zero_(grad_features)};
  // Without channels there is nothing to write.
  problem.grad_embed = grad_embed.numel() > 0 ? grad_embed.mutable_data_ptr() : nullptr;
  problem.grad_features = grad_features.numel() > 0 ? grad_features.mutable_data_ptr() : nullptr;
  mfk::cpu::mask_loss_backward(problem, mfk::cpu::threads());
  return {grad_embed, grad_features};
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) {
  m.impl("mask_loss", TORCH_BOX(&mask_loss));
  m.impl("mask_loss_backward", TORCH_BOX(&mask_loss_backward));
}

}  // namespace
