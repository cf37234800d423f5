"""Models of transformers before and after `patch`: losses alone, and whole training steps.

    python benchmarks/bench_integrations.py                    all cases of this machine
    python benchmarks/bench_integrations.py --reuse-pages      with a heap that keeps its pages
    pytest benchmarks/bench_integrations.py                    ours alone under pytest-benchmark

The loss of the original and every gradient are compared first; a wrong result has no time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from harness.command_line import EAGER, chosen, command_line, parse
from harness.memory import peak_bytes
from harness.report import show, write
from harness.timing import Row, interleaved, rows
from torch import Tensor, nn
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss
from transformers.models.maskformer.modeling_maskformer import (
    MaskFormerHungarianMatcher,
    MaskFormerLoss,
)

from mfkernels.integrations.transformers import patch, unpatch

OURS = "mfkernels"
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Sizes:
    """In the letters of the documentation."""

    images: int
    low: int
    size: int
    classes: int
    segments: int
    layers: int
    queries: int = 100


@dataclass(frozen=True)
class StepRow(Row):
    """Times with the memory above that before the step, in bytes; -1 where it is not measured."""

    peak: int


@dataclass
class Case:
    """Something to patch, and what computes its loss and gradients."""

    module: nn.Module
    step: Callable[[], list[Tensor]]


def make_targets(sizes: Sizes, device: torch.device) -> dict[str, list[Tensor]]:
    """Cells around random points, in transformers' form: masks of float32."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(sizes.size).float()
    pixels = torch.cartesian_prod(axis, axis)
    masks, labels = [], []
    for _ in range(sizes.images):
        centers = sizes.size * torch.rand(sizes.segments, 2, generator=generator)
        cells = torch.cdist(pixels, centers).argmin(1)
        cells = cells.view(sizes.size, sizes.size)
        mask = cells == torch.arange(sizes.segments)[:, None, None]
        masks.append(mask.float().to(device))
        labels.append(
            torch.randint(sizes.classes, (sizes.segments,), generator=generator).to(device)
        )
    return {"mask_labels": masks, "class_labels": labels}


def make_loss(criterion: nn.Module, sizes: Sizes, device: torch.device) -> Case:
    """The criterion alone, on random dense logits of all layers."""
    generator = torch.Generator().manual_seed(1)
    masks = (sizes.images, sizes.queries, sizes.low, sizes.low)
    classes = (sizes.images, sizes.queries, sizes.classes + 1)
    layers = [
        {
            "masks_queries_logits": torch.randn(masks, generator=generator),
            "class_queries_logits": torch.randn(classes, generator=generator),
        }
        for _ in range(sizes.layers)
    ]
    layers = [{k: v.to(device).requires_grad_() for k, v in each.items()} for each in layers]
    leaves = [leaf for each in layers for leaf in each.values()]
    targets = make_targets(sizes, device)
    criterion.to(device)

    def step() -> list[Tensor]:
        torch.manual_seed(2)
        *aux, final = layers
        total = sum(criterion(**final, **targets, auxiliary_predictions=aux).values())
        return [total.detach(), *torch.autograd.grad(total, leaves)]

    return Case(criterion, step)


def make_step(model: nn.Module, sizes: Sizes, device: torch.device) -> Case:
    """A forward and backward pass of a whole model."""
    model.train().to(device)
    pixels = torch.randn(sizes.images, 3, sizes.size, sizes.size, device=device)
    targets = make_targets(sizes, device)

    def step() -> list[Tensor]:
        torch.manual_seed(2)
        for module in model.modules():
            # A step must not change what the next one computes.
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0
        model.zero_grad()
        loss = model(pixel_values=pixels, **targets).loss
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])]

    return Case(model, step)


def maskformer_loss(device: torch.device) -> Case:
    sizes = Sizes(4, 128, 512, classes=150, segments=9, layers=6)
    matcher = MaskFormerHungarianMatcher(1.0, 20.0, 1.0)
    return make_loss(MaskFormerLoss(sizes.classes, matcher, {}, 0.1), sizes, device)


def mask2former_loss(device: torch.device) -> Case:
    sizes = Sizes(2, 256, 1024, classes=150, segments=15, layers=10)
    config = SimpleNamespace(
        num_labels=sizes.classes,
        no_object_weight=0.1,
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        train_num_points=12544,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )
    return make_loss(Mask2FormerLoss(config, {}), sizes, device)


def maskformer_step(device: torch.device) -> Case:
    torch.manual_seed(0)
    config = transformers.MaskFormerConfig(
        backbone_config=transformers.ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 128, 256],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        decoder_config=transformers.DetrConfig(d_model=128, decoder_layers=6, dropout=0.0),
        fpn_feature_size=128,
        mask_feature_size=128,
        num_labels=150,
    )
    model = transformers.MaskFormerForInstanceSegmentation(config)
    sizes = Sizes(2, 96, 384, classes=150, segments=9, layers=1)
    return make_step(model, sizes, device)


def mask2former_step(device: torch.device) -> Case:
    torch.manual_seed(0)
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=32,
            depths=[1, 1, 2, 1],
            num_heads=[1, 2, 4, 8],
            drop_path_rate=0.0,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=256,
        dim_feedforward=256,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        num_labels=150,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    sizes = Sizes(2, 96, 384, classes=150, segments=12, layers=4)
    return make_step(model, sizes, device)


CASES: dict[str, Callable[[torch.device], Case]] = {
    "maskformer-loss 4x512x512, 6 layers": maskformer_loss,
    "mask2former-loss 2x1024x1024, 10 layers": mask2former_loss,
    "maskformer-step 2x384x384": maskformer_step,
    "mask2former-step 2x384x384, 4 layers": mask2former_step,
}


def run(name: str, device: torch.device, seconds: float) -> list[StepRow]:
    case = CASES[name](device)

    def original() -> list[Tensor]:
        unpatch(case.module)
        return case.step()

    def patched() -> list[Tensor]:
        patch(case.module)
        return case.step()

    providers: dict[str, Callable[[], list[Tensor]]] = {EAGER: original, OURS: patched}
    worst = max(
        float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
        for a, b in zip(patched(), original(), strict=True)
    )
    if not worst <= TOLERANCE:
        print(f"{name}: {OURS} is wrong by {worst:.2g}")
        del providers[OURS]
    times = interleaved(providers, device, seconds, least=3, warm_up=1)
    keeps_pages = device.type == "cpu" and "GLIBC_TUNABLES" in os.environ
    return [
        StepRow(
            **asdict(row),
            peak=-1 if keeps_pages else peak_bytes(device, providers[row.provider]),
        )
        for row in rows("patched transformers", name, device, times, EAGER)
    ]


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.split()[0])
def test_integrations(benchmark: Any, name: str) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = CASES[name](device)
    patch(case.module)

    def ours() -> None:
        case.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark(ours)


def main() -> None:
    arguments = parse(command_line((__doc__ or "").splitlines()[0]))
    result: list[StepRow] = []
    for name in chosen(CASES, arguments):
        some = run(name, arguments.device, arguments.seconds)
        show(some)
        for row in some:
            if row.peak >= 0:
                print(f"  {row.provider:<28} {row.peak / 1e6:9.1f} MB above the rest")
        result += some
    if arguments.json:
        write(arguments.json, result, arguments.device)


if __name__ == "__main__":
    main()
