"""A whole MaskFormer training step: network, criterion, backward, gradient clipping, optimiser.

- `native`: the model as the trainer runs it; `native-bf16` sets `train.precision: bf16`.
- `native-compile`, `native-bf16-compile`: the same with `train.compile`, except that random numbers
  come from eager PyTorch's generator so that dropout drops the same elements.
- `reference`: the baseline, the same model with the official criterion on dense logits.
- `transformers`: Hugging Face's MaskFormer of the same size. Its weights and losses are its own, so
  its loss only has to be finite. `transformers-compile` compiles all of it but the matcher's SciPy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from harness.comparison import (
    COMPILE,
    NATIVE,
    NATIVE_BF16,
    NATIVE_COMPILE,
    REFERENCE,
    Comparison,
    Floor,
    Provider,
)
from harness.inputs import CaseSizes, Inputs, make_inputs
from harness.laps import Laps
from harness.official import official_criterion
from harness.plugin import comparison_test
from torch import Tensor, nn
from torch._inductor import config as inductor_config

import maskformer
import mfkernels
from maskformer.modeling.frozen_norm import join_norms
from maskformer.training.speed import choose_memory_format, compile_regions, convert_memory_format
from mfkernels import MaskFormerCriterion


@dataclass(frozen=True)
class Case:
    recipe: str
    images: int
    side: int
    classes: int = 150
    segments: int = 9

    @property
    def sizes(self) -> CaseSizes:
        """Sizes of the targets; placeholders elsewhere, as the model makes the predictions."""
        low = self.side // 4
        return CaseSizes(
            self.images, (low, low), (self.side, self.side), self.classes, self.segments,
            layers=1, queries=1, channels=1,
        )  # fmt: skip


IMAGES = 16 if torch.cuda.is_available() else 2
CASES = {
    f"R50 {IMAGES}x512x512": Case("ade20k/r50", IMAGES, 512),
    f"Swin-T {IMAGES}x512x512": Case("ade20k/swin_t", IMAGES, 512),
}
PROVIDERS = (
    *(NATIVE, NATIVE_COMPILE, NATIVE_BF16, f"{NATIVE_BF16}-{COMPILE}", REFERENCE),
    *("transformers", "transformers-compile", "transformers-bf16"),
)

Loss = Callable[[nn.Module, Tensor, Inputs], Tensor]


def native(criterion: MaskFormerCriterion, model: nn.Module, x: Tensor, inputs: Inputs) -> Tensor:
    return criterion.total(criterion(model(x), inputs.targets))


def reference(
    criterion: MaskFormerCriterion, model: nn.Module, x: Tensor, inputs: Inputs
) -> Tensor:
    with mfkernels.use_backend("reference"):
        outputs = model(x)
    masks = torch.einsum("lbqc,bchw->lbqhw", outputs["mask_embed"], outputs["pixel_features"])
    *aux, final = (
        {"pred_logits": logits, "pred_masks": mask}
        for logits, mask in zip(outputs["class_logits"], masks, strict=True)
    )
    losses = official_criterion(
        {**final, "aux_outputs": aux}, inputs.official_targets, criterion.num_classes
    )
    return criterion.total(losses)


def transformers_model(case: Case) -> Any:
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


@dataclass(frozen=True)
class Step:
    """A training step on one batch, with a learning rate of 0 so that every step computes the same.

    A hook on the model marks the lap where the network ends; the methods here mark the others.
    """

    loss: Loss
    model: nn.Module
    x: Tensor
    inputs: Inputs
    laps: Laps
    bf16: bool = False
    compiled: bool = False

    def provider(self) -> Provider:
        self.model.to(self.x.device).train()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)

        def backward(value: Tensor) -> list[Tensor]:
            with self._same_dropout():
                value.backward()
            self.laps.mark("backward")
            nn.utils.clip_grad_norm_(parameters, 0.01)
            optimizer.step()
            optimizer.zero_grad()
            self.laps.mark("optimizer")
            return []

        tolerance = 2e-2 if self.bf16 else None
        return Provider(self.forward, backward, laps=self.laps, tolerance=tolerance)

    def forward(self) -> Tensor:
        self.laps.start()
        torch.manual_seed(0)  # the same dropout in every call
        precision = torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.bf16)
        with precision, self._same_dropout():
            loss = self.loss(self.model, self.x, self.inputs)
        self.laps.mark("criterion")
        return loss

    def _same_dropout(self) -> AbstractContextManager[object]:
        """Compiled code inside the block draws the same random numbers as eager PyTorch."""
        return inductor_config.patch(fallback_random=True) if self.compiled else nullcontext()


def our_model(case: Case) -> maskformer.MaskFormer:
    torch.manual_seed(0)
    return maskformer.MaskFormer.from_config(case.recipe, num_classes=case.classes)


def our_step(
    case: Case, x: Tensor, inputs: Inputs, *, compiled: bool = False, bf16: bool = False
) -> Provider:
    """This project's training step, set up as the trainer does it."""
    model = our_model(case)
    join_norms(model.backbone)
    layout = choose_memory_format(maskformer.load_config(case.recipe).train, model)
    convert_memory_format(model, layout)
    if compiled:
        compile_regions(model)
    laps = Laps(x.device)
    model.register_forward_hook(lambda *_: laps.mark("network"))
    loss = partial(native, MaskFormerCriterion(case.classes).to(x.device))
    x = x.contiguous(memory_format=layout)
    return Step(loss, model, x, inputs, laps, bf16, compiled).provider()


def plain_step(case: Case, x: Tensor, inputs: Inputs) -> Provider:
    model, laps = our_model(case), Laps(x.device)
    model.register_forward_hook(lambda *_: laps.mark("network"))
    loss = partial(reference, MaskFormerCriterion(case.classes).to(x.device))
    return Step(loss, model, x, inputs, laps).provider()


def transformers_step(
    case: Case, x: Tensor, inputs: Inputs, *, compiled: bool = False, bf16: bool = False
) -> Provider:
    model, laps = transformers_model(case), Laps(x.device)
    if compiled:  # a mark would cause a graph break, so the criterion is timed with the network
        model.compile()
    else:
        model.criterion.register_forward_pre_hook(lambda *_: laps.mark("network"))
    return Step(transformers_loss, model, x, inputs, laps, bf16).provider()


def make(name: str, device: torch.device, shrink: bool) -> Comparison:
    # Only here, once per case: a reset also forces already compiled providers to compile again.
    torch.compiler.reset()
    case = CASES[name]
    if shrink:
        case = replace(case, recipe="camvid", images=1, side=64, classes=11)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case.images, 3, case.side, case.side, generator=generator).to(device)
    inputs = make_inputs(case.sizes, device)

    @functools.cache
    def truth() -> list[Tensor]:
        return [plain_step(case, x, inputs).forward().detach()]

    def finite(**how: bool) -> Provider:
        (expected,) = truth()
        return replace(
            transformers_step(case, x, inputs, **how),
            result=lambda loss: [expected.where(loss.isfinite(), float("nan"))],
        )

    providers: Mapping[str, Callable[[], Provider]] = {
        NATIVE: lambda: our_step(case, x, inputs),
        NATIVE_COMPILE: lambda: our_step(case, x, inputs, compiled=True),
        NATIVE_BF16: lambda: our_step(case, x, inputs, bf16=True),
        f"{NATIVE_BF16}-{COMPILE}": lambda: our_step(case, x, inputs, bf16=True, compiled=True),
        REFERENCE: lambda: plain_step(case, x, inputs),
        "transformers": finite,
        "transformers-compile": lambda: finite(compiled=True),
        "transformers-bf16": lambda: finite(bf16=True),
    }
    return Comparison(
        providers,
        truth=truth,
        tolerance=1e-3,
        floor=Floor(0, 0),
        given=[x],
        images=case.images,
    )


test_training_step = comparison_test(CASES, PROVIDERS, make)
