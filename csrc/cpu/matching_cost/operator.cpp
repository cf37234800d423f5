// The tensor operator `matching_cost` on the CPU.
#include "cpu/matching_cost/plan.h"

#include "cpu/common/tensors.h"

namespace {

// The most pixels of padding behind a segment.
constexpr int64_t kPadding = 64;

using mfk::cpu::MatchingCost;
using mfk::cpu::OptionalTensor;
using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;

Tensor matching_cost(const Tensor& class_logits, const Tensor& embed,
                     const OptionalTensor& features, const OptionalTensor& label_map,
                     const OptionalTensor& masks, const Tensor& labels, const Tensor& counts,
                     int64_t max_count, double class_weight, double mask_weight, double dice_weight,
                     double alpha, double gamma) {
  MatchingCost cost{};
  cost.masks = mfk::cpu::masks_of(embed, features);
  const mfk::cpu::Masks& predicted = cost.masks;
  const int64_t layers = predicted.layers, images = predicted.images, queries = predicted.queries;
  mfk::check_focal(alpha, gamma);
  const mfk::cpu::StoredSegments stored(label_map, masks, counts, max_count, images);
  cost.segments = stored.segments;
  const Tensor classes = mfk::cpu::contiguous("labels", labels);
  mfk::check_type("labels", classes, ScalarType::Long);
  mfk::check_shape("labels", classes, {stored.total});
  mfk::cpu::check_argument("class_logits", class_logits);
  mfk::check_shape("class_logits", class_logits, {layers, images, queries, "K + 1"});
  STD_TORCH_CHECK(class_logits.size(3) >= 1, "class_logits must have classes, got ",
                  mfk::text(class_logits));
  check_pixels(predicted);
  // Every segment and chunk of an image starts at a place of its own, counted in 32 bits.
  STD_TORCH_CHECK(predicted.height * predicted.width + kPadding * (max_count + 2) <=
                      std::numeric_limits<int32_t>::max(),
                  "masks must have fewer than 2^31 pixels, got ", predicted.height, " x ",
                  predicted.width, " for ", max_count, " segments");
  cost.class_logits = class_logits.const_data_ptr();
  cost.class_element = mfk::element_of("class_logits", class_logits);
  for (int64_t i = 0; i < 4; ++i) cost.class_stride[i] = class_logits.stride(i);
  cost.classes = class_logits.size(3);
  cost.labels = classes.const_data_ptr<int64_t>();
  cost.class_weight = class_weight;
  cost.mask_weight = mask_weight;
  cost.dice_weight = dice_weight;
  cost.alpha = alpha;
  cost.gamma = gamma;
  cost.wide = mfk::cpu::is_wide(class_logits) || mfk::cpu::is_wide(embed) ||
              (features.has_value() && mfk::cpu::is_wide(*features));
  Tensor result = torch::stable::new_empty(class_logits, {layers, images, queries, max_count},
                                           cost.wide ? ScalarType::Double : ScalarType::Float);
  cost.cost = result.mutable_data_ptr();
  if (result.numel() > 0) {
    mfk::cpu::matching_cost(cost, mfk::cpu::threads());
  }
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) { m.impl("matching_cost", TORCH_BOX(&matching_cost)); }

}  // namespace
