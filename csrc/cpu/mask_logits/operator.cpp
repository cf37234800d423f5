// The tensor operator `mask_logits` on the CPU.
#include "cpu/mask_logits/plan.h"

#include "cpu/common/tensors.h"

namespace {

using mfk::cpu::Tensor;

Tensor mask_logits(const Tensor& embed, const Tensor& features) {
  mfk::cpu::MaskLogits task{};
  task.masks = mfk::cpu::masks_of(embed, features);
  mfk::check_type("pixel_features", features, embed.scalar_type());
  task.wide = mfk::cpu::is_wide(embed);
  task.element = task.masks.embed_element;
  const mfk::cpu::Masks& masks = task.masks;
  Tensor logits = torch::stable::new_empty(
      embed, {masks.layers, masks.images, masks.queries, masks.height, masks.width});
  task.logits = logits.mutable_data_ptr();
  if (logits.numel() > 0) {
    mfk::cpu::mask_logits(task, mfk::cpu::threads());
  }
  return logits;
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) { m.impl("mask_logits", TORCH_BOX(&mask_logits)); }

}  // namespace
