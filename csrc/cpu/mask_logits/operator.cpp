// The tensor operator `mask_logits` on the CPU.
#include "cpu/mask_logits/plan.h"

#include "cpu/common/tensors.h"

namespace {

using mfk::cpu::Tensor;

Tensor mask_logits(const Tensor& embed, const Tensor& features) {
  mfk::cpu::MaskLogitsProblem problem{};
  problem.predictions = mfk::cpu::predictions_of(embed, features);
  mfk::check_type("pixel_features", features, embed.scalar_type());
  problem.is_double = mfk::cpu::is_double(embed);
  problem.element = problem.predictions.embed_element;
  const mfk::cpu::MaskPredictions& predictions = problem.predictions;
  Tensor logits =
      mfk::cpu::new_result(embed, {predictions.layers, predictions.images, predictions.queries,
                                   predictions.height, predictions.width});
  problem.logits = logits.mutable_data_ptr();
  if (logits.numel() > 0) {
    mfk::cpu::mask_logits(problem, mfk::cpu::threads());
  }
  return logits;
}

STABLE_TORCH_LIBRARY_IMPL(mfkernels, CPU, m) { m.impl("mask_logits", TORCH_BOX(&mask_logits)); }

}  // namespace
