// The tensor operator `matching_cost` on the CPU.
#include "cpu/matching_cost/plan.h"

#include "cpu/common/tensors.h"

namespace {

// The most pixels of padding after a segment.
constexpr int64_t kPadding = 64;

using mfk::cpu::MatchingCostProblem;
using mfk::cpu::OptionalTensor;
using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;

Tensor matching_cost(const Tensor& class_logits, const Tensor& embed,
                     const OptionalTensor& features, const OptionalTensor& label_map,
                     const OptionalTensor& masks, const Tensor& labels, const Tensor& counts,
                     int64_t max_count, double class_weight, double mask_weight, double dice_weight,
                     double alpha, double gamma) {
  MatchingCostProblem problem{};
  problem.predictions = mfk::cpu::predictions_of(embed, features);
  const mfk::cpu::MaskPredictions& predictions = problem.predictions;
  const int64_t layers = predictions.layers, images = predictions.images,
                queries = predictions.queries;
  mfk::check_focal(alpha, gamma);
  const mfk::cpu::StoredSegments stored(label_map, masks, counts, max_count, images);
  problem.segments = stored.segments;
  const Tensor classes = mfk::cpu::contiguous("labels", labels);
  mfk::check_type("labels", classes, ScalarType::Long);
  mfk::check_shape("labels", classes, {stored.total});
  mfk::cpu::check_argument("class_logits", class_logits);
  mfk::check_shape("class_logits", class_logits, {layers, images, queries, "K + 1"});
  STD_TORCH_CHECK(class_logits.size(3) >= 1, "class_logits must have classes, got ",
                  mfk::text(class_logits));
  check_pixels(predictions);
  // Every segment and chunk of an image starts at a padded offset, which has 32 bits.
  STD_TORCH_CHECK(predictions.height * predictions.width + kPadding * (max_count + 2) <=
                      std::numeric_limits<int32_t>::max(),
                  "masks must have fewer than 2^31 pixels, got ", predictions.height, " x ",
                  predictions.width, " for ", max_count, " segments");
  problem.class_logits = class_logits.const_data_ptr();
  problem.class_element = mfk::element_of("class_logits", class_logits);
  problem.class_stride = {.layer = class_logits.stride(0),
                          .image = class_logits.stride(1),
                          .query = class_logits.stride(2),
                          .class_index = class_logits.stride(3)};
  problem.classes = class_logits.size(3);
  problem.labels = classes.const_data_ptr<int64_t>();
  problem.class_weight = class_weight;
  problem.mask_weight = mask_weight;
  problem.dice_weight = dice_weight;
  problem.alpha = alpha;
  problem.gamma = gamma;
  problem.is_double = mfk::cpu::is_double(class_logits) || mfk::cpu::is_double(embed) ||
                      mfk::cpu::is_double(features);
  Tensor result = torch::stable::new_empty(class_logits, {layers, images, queries, max_count},
                                           mfk::cpu::type_of(problem.is_double));
  problem.cost = result.mutable_data_ptr();
  if (result.numel() > 0) {
    mfk::cpu::matching_cost(problem, mfk::cpu::threads());
  }
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) { m.impl("matching_cost", TORCH_BOX(&matching_cost)); }

}  // namespace
