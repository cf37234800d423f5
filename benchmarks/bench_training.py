"""A whole training step of MaskFormer: model, criterion, backward pass, clipping and optimiser.

The plain way is the same model with the official criterion on dense logits. `transformers` is its
MaskFormer of the same size, whose weights and losses are its own: it only has to be finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from harness.comparison import NATIVE, REFERENCE, Comparison, Floor, Provider
from harness.inputs import CaseSizes, Inputs, make_inputs
from harness.official import official_criterion
from harness.plugin import comparison_test
from torch import Tensor, nn

import maskformer
from mfkernels import MaskFormerCriterion


@dataclass(frozen=True)
class Case:
    recipe: str
    images: int
    side: int
    amp: bool = False
    """bfloat16 by autocast."""
    classes: int = 150
    segments: int = 9

    @property
    def sizes(self) -> CaseSizes:
        """Of the targets; the predictions are the model's own."""
        low = self.side // 4
        return CaseSizes(
            self.images, (low, low), (self.side, self.side), self.classes, self.segments,
            layers=1, queries=1, channels=1,
        )  # fmt: skip


CPU_CASES = {"R50 2x512x512": Case("ade20k/r50", 2, 512)}
GPU_CASES = {
    "R50-bf16 16x512x512, bf16": Case("ade20k/r50", 16, 512, amp=True),
    "Swin-T-bf16 16x512x512, bf16": Case("ade20k/swin_t", 16, 512, amp=True),
    "R50-fp32 16x512x512, fp32": Case("ade20k/r50", 16, 512),
}
CASES = GPU_CASES if torch.cuda.is_available() else CPU_CASES

Loss = Callable[[nn.Module, Tensor, Inputs], Tensor]


def native(criterion: MaskFormerCriterion, model: nn.Module, x: Tensor, inputs: Inputs) -> Tensor:
    return criterion.total(criterion(model(x), inputs.targets))


def reference(
    criterion: MaskFormerCriterion, model: nn.Module, x: Tensor, inputs: Inputs
) -> Tensor:
    outputs = model(x)
    masks = torch.einsum("lbqc,bchw->lbqhw", outputs["mask_embed"], outputs["pixel_features"])
    *aux, final = (
        {"pred_logits": logits.float(), "pred_masks": mask.float()}
        for logits, mask in zip(outputs["class_logits"], masks, strict=True)
    )
    with torch.autocast(x.device.type, enabled=False):
        losses = official_criterion(
            {**final, "aux_outputs": aux}, inputs.official_targets, criterion.num_classes
        )
        return criterion.total(losses)


def transformers_model(case: Case) -> nn.Module:
    import transformers

    if "swin" in case.recipe:
        backbone = transformers.SwinConfig(out_features=[f"stage{i}" for i in range(1, 5)])
    else:
        backbone = transformers.ResNetConfig(out_features=[f"stage{i}" for i in range(1, 5)])
    config = transformers.MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=transformers.DetrConfig(decoder_layers=6),
        num_labels=case.classes,
        use_auxiliary_loss=True,
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def transformers_loss(model: nn.Module, x: Tensor, inputs: Inputs) -> Tensor:
    masks = [target["masks"].float() for target in inputs.official_targets]
    labels = [target["labels"] for target in inputs.official_targets]
    targets = {"mask_labels": masks, "class_labels": labels}
    return model(pixel_values=x, **targets, output_hidden_states=True).loss


def build(loss: Loss, model: nn.Module, x: Tensor, inputs: Inputs, amp: bool) -> Provider:
    model.to(x.device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    # No step changes the weights: what is compared stays the same.
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)

    def forward() -> Tensor:
        torch.manual_seed(0)  # of dropout
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            return loss(model, x, inputs)

    def backward(value: Tensor) -> list[Tensor]:
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 0.01)
        optimizer.step()
        optimizer.zero_grad()
        return []

    return Provider(forward, backward)


def ours(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return maskformer.MaskFormer.from_config(case.recipe, num_classes=case.classes)


def make(name: str, device: torch.device, shrink: bool) -> Comparison:
    case = CASES[name]
    if shrink:
        case = replace(case, recipe="camvid", images=1, side=64, classes=11)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case.images, 3, case.side, case.side, generator=generator).to(device)
    inputs = make_inputs(case.sizes, device)
    criterion = MaskFormerCriterion(case.classes).to(device)
    plain = partial(reference, criterion)

    def truth() -> list[Tensor]:
        return [build(plain, ours(case), x, inputs, amp=False).forward().detach()]

    def finite() -> Provider:
        other = build(transformers_loss, transformers_model(case), x, inputs, case.amp)
        expected = truth()[0]
        return replace(other, result=lambda loss: [expected.where(loss.isfinite(), float("nan"))])

    return Comparison(
        {
            NATIVE: lambda: build(partial(native, criterion), ours(case), x, inputs, case.amp),
            REFERENCE: lambda: build(plain, ours(case), x, inputs, case.amp),
            "transformers": finite,
        },
        truth=truth,
        tolerance=2e-2 if case.amp else 1e-3,
        floor=Floor(0, 0),
        given=[x],
    )


test_training_step = comparison_test(CASES, [NATIVE, REFERENCE, "transformers"], make)
