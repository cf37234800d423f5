"""Mask logits, criterion and backward pass for all decoder layers.

`reference` is the official computation on dense logits. `transformers` is the criterion of Hugging
Face's MaskFormer, which applies the loss weights itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Floor, Provider, compiled
from harness.inputs import (
    CASES,
    CaseSizes,
    Inputs,
    loss_floor,
    make_inputs,
    matching_floor,
    sizes_of,
)
from harness.official import official_criterion
from harness.plugin import comparison_test
from torch import Tensor

from mfkernels import MaskFormerCriterion, use_backend
from mfkernels.ops.common.logits import at_least_float32

Total = Callable[[Inputs], Tensor]
"""Computes the weighted loss summed over all layers."""


def native(criterion: MaskFormerCriterion) -> Total:
    return lambda inputs: criterion.total(criterion(inputs.factored, inputs.targets))


def dense_layers(inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    class_logits, embed, features = map(at_least_float32, inputs.leaves)
    masks = torch.einsum("lbqc,bchw->lbqhw", embed, features)
    return [*zip(class_logits, masks, strict=True)]


def truth(criterion: MaskFormerCriterion, inputs: Inputs) -> list[Tensor]:
    """Loss and gradients from this project's reference, which needs little memory: it processes a
    few masks at a time.
    """
    with use_backend("reference"):
        return provider(native(criterion), inputs)()


def reference(criterion: MaskFormerCriterion) -> Total:
    def total(inputs: Inputs) -> Tensor:
        *aux, final = (
            {"pred_logits": logits, "pred_masks": mask} for logits, mask in dense_layers(inputs)
        )
        outputs = {**final, "aux_outputs": aux}
        losses = official_criterion(outputs, inputs.official_targets, criterion.num_classes)
        return criterion.total(losses)

    return total


def transformers(criterion: MaskFormerCriterion) -> Total:
    from transformers.models.maskformer import modeling_maskformer as hf

    weights = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
    matcher = hf.MaskFormerHungarianMatcher(1.0, 20.0, 1.0)
    loss = hf.MaskFormerLoss(criterion.num_classes, matcher, weights, 0.1)

    def total(inputs: Inputs) -> Tensor:
        *aux, final = (
            {"class_queries_logits": logits, "masks_queries_logits": mask}
            for logits, mask in dense_layers(inputs)
        )
        masks = [target["masks"].float() for target in inputs.official_targets]
        labels = [target["labels"] for target in inputs.official_targets]
        losses = loss.to(masks[0].device)(
            final["masks_queries_logits"], final["class_queries_logits"], masks, labels, aux
        )
        return sum(
            value * next(w for name, w in weights.items() if key.startswith(name))
            for key, value in losses.items()
        )

    return total


def provider(total: Total, inputs: Inputs) -> Provider:
    return Provider(lambda: total(inputs), lambda loss: torch.autograd.grad(loss, inputs.leaves))


def floor_of(sizes: CaseSizes) -> Floor:
    matching, loss = matching_floor(sizes), loss_floor(sizes)
    return Floor(matching.flops + loss.flops, matching.bytes + loss.bytes, sizes.dtype)


def comparison(sizes: CaseSizes, device: torch.device) -> Comparison:
    inputs = make_inputs(sizes, device)
    criterion = MaskFormerCriterion(sizes.classes).to(device)
    build = partial(provider, inputs=inputs)
    return Comparison(
        {
            NATIVE: lambda: build(native(criterion)),
            REFERENCE: lambda: build(reference(criterion)),
            COMPILE: lambda: build(compiled(reference(criterion))),
            "transformers": lambda: build(transformers(criterion)),
        },
        truth=lambda: truth(criterion, make_inputs(sizes, device, torch.float64)),
        tolerance=sizes.tolerance(1e-4),
        floor=floor_of(sizes),
        given=inputs.tensors,
    )


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    return comparison(sizes_of(case, shrink), device)


test_criterion = comparison_test(CASES, [NATIVE, REFERENCE, COMPILE, "transformers"], make)
