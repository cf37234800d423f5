// The tensor operator `matching_cost` on the CPU.
#include "cpu/matching_cost.h"

#include "cpu/tensors.h"

namespace {

using mfk::cpu::MatchingCost;
using mfk::cpu::ScalarType;
using mfk::cpu::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor matching_cost(const Tensor& class_logits, const Tensor& embed,
                     const OptionalTensor& features, const OptionalTensor& label_map,
                     const OptionalTensor& masks, const Tensor& labels, const Tensor& counts,
                     int64_t max_count, double class_weight, double mask_weight, double dice_weight,
                     double alpha, double gamma) {
  const OptionalTensor maps = mfk::cpu::contiguous(label_map);
  const OptionalTensor dense = mfk::cpu::contiguous(masks);
  const Tensor lengths = torch::stable::contiguous(counts);
  const Tensor classes = torch::stable::contiguous(labels);
  MatchingCost cost{};
  cost.masks = mfk::cpu::masks_of(embed, features);
  const int64_t layers = cost.masks.layers, images = cost.masks.images;
  const int64_t queries = cost.masks.queries;
  cost.segments = mfk::cpu::segments_of(maps, dense, lengths, max_count, images);
  int64_t total = 0;
  for (int64_t b = 0; b < images; ++b) total += cost.segments.counts[b];
  STD_TORCH_CHECK(classes.is_cpu() && classes.scalar_type() == ScalarType::Long &&
                      classes.dim() == 1 && classes.size(0) == total,
                  "labels must be an int64 CPU tensor of shape [", total, "]");
  STD_TORCH_CHECK(class_logits.is_cpu() && class_logits.dim() == 4 &&
                      class_logits.size(0) == layers && class_logits.size(1) == images &&
                      class_logits.size(2) == queries && class_logits.size(3) >= 1,
                  "class_logits must be [", layers, ", ", images, ", ", queries, ", K + 1]");
  STD_TORCH_CHECK(cost.masks.height > 0 && cost.masks.width > 0, "masks must have pixels");
  cost.class_logits = class_logits.const_data_ptr();
  cost.class_element = mfk::cpu::element_of("class_logits", class_logits);
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
