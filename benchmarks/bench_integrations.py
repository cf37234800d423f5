"""Hugging Face transformers models before (`original`) and after (`native`) `patch`.

Cases cover the losses alone and whole models. Forward and backward are timed as one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from harness.comparison import NATIVE, Comparison, Floor, Provider
from harness.plugin import comparison_test
from torch import Tensor, nn

ORIGINAL = "original"


@dataclass(frozen=True)
class Sizes:
    """Problem sizes. `low` and `size` are the side lengths of the mask logits and the targets, and
    `segments` is the number per image.
    """

    images: int
    low: int
    size: int
    classes: int
    segments: int
    layers: int
    queries: int = 100

    def shrunk(self) -> Sizes:
        """A smaller problem of the same kind, for checking results without timing them."""
        return replace(self, low=self.low // 4, size=self.size // 4, layers=min(self.layers, 2))


@dataclass
class Case:
    """A module to patch, and a function that computes its loss and gradients."""

    module: nn.Module
    step: Callable[[], list[Tensor]]


def make_targets(sizes: Sizes, device: torch.device) -> dict[str, list[Tensor]]:
    """Voronoi cells of random points, in transformers' format (float32 masks)."""
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
    """The criterion alone, on random dense logits for all layers."""
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
            # Freeze the running statistics: a step must not change what the next one computes.
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0
        model.zero_grad()
        loss = model(pixel_values=pixels, **targets).loss
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])]

    return Case(model, step)


def maskformer_loss(sizes: Sizes, device: torch.device) -> Case:
    from transformers.models.maskformer import modeling_maskformer as hf

    matcher = hf.MaskFormerHungarianMatcher(1.0, 20.0, 1.0)
    return make_loss(hf.MaskFormerLoss(sizes.classes, matcher, {}, 0.1), sizes, device)


def mask2former_loss(sizes: Sizes, device: torch.device) -> Case:
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

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


def maskformer_step(sizes: Sizes, device: torch.device) -> Case:
    import transformers

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
    return make_step(model, sizes, device)


def mask2former_step(sizes: Sizes, device: torch.device) -> Case:
    import transformers

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
    return make_step(model, sizes, device)


CASES: dict[str, tuple[Callable[[Sizes, torch.device], Case], Sizes]] = {
    "maskformer-loss 4x512x512, 6 layers": (maskformer_loss, Sizes(4, 128, 512, 150, 9, 6)),
    "mask2former-loss 2x1024x1024, 10 layers": (mask2former_loss, Sizes(2, 256, 1024, 150, 15, 10)),
    "maskformer-step 2x384x384": (maskformer_step, Sizes(2, 96, 384, 150, 9, 1)),
    "mask2former-step 2x384x384, 4 layers": (mask2former_step, Sizes(2, 96, 384, 150, 12, 4)),
}


def make(name: str, device: torch.device, shrink: bool) -> Comparison:
    from mfkernels.integrations.transformers import patch, unpatch

    build, sizes = CASES[name]
    case = build(sizes.shrunk() if shrink else sizes, device)

    def original() -> list[Tensor]:
        unpatch(case.module)
        return case.step()

    def patched() -> list[Tensor]:
        patch(case.module)
        return case.step()

    return Comparison(
        {NATIVE: lambda: Provider(patched), ORIGINAL: lambda: Provider(original)},
        truth=original,
        tolerance=1e-4,
        floor=Floor(0, 0),
    )


test_patched_transformers = comparison_test(CASES, [NATIVE, ORIGINAL], make)
