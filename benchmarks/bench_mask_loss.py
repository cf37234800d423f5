"""Mask losses for given matches, forward and backward, including the mask logits.

The baseline (`reference`) does what the official code does: it computes the mask logits of all
queries, then upsamples all matched masks of a layer to full resolution at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Provider
from harness.inputs import CASES, CaseSizes, Inputs, loss_floor, sizes_of
from harness.losses import loss_comparison
from harness.plugin import comparison_test
from torch import Tensor
from torch.nn import functional as F

from mfkernels import mask_loss
from mfkernels.ops.common.logits import at_least_float32
from mfkernels.ops.focal_dice.reference import focal_dice_loss


def native(inputs: Inputs, matches: Tensor) -> Tensor:
    losses = mask_loss(inputs.mask_embed, inputs.pixel_features, inputs.targets, matches)
    return torch.stack(losses)


def reference(inputs: Inputs, matches: Tensor) -> Tensor:
    embed, features = at_least_float32(inputs.mask_embed), at_least_float32(inputs.pixel_features)
    logits = torch.einsum("lbqc,bchw->lbqhw", embed, features)
    masks = torch.cat([target["masks"] for target in inputs.official_targets]).to(logits.dtype)
    count = masks.shape[0]
    losses = []
    for layer, queries in zip(logits, matches, strict=True):
        image = torch.arange(len(queries), device=queries.device)[:, None].expand_as(queries)
        chosen = layer[image.flatten(), queries.flatten()]
        size = masks.shape[-2:]
        full = F.interpolate(chosen[:, None], size, mode="bilinear", align_corners=False)
        focal, dice = focal_dice_loss(full.flatten(1), masks.flatten(1), 0.25, 2.0)
        losses.append(torch.stack([focal.sum(), dice.sum()]) / count)
    return torch.stack(losses, 1)


def provider(loss: Callable[..., Tensor], inputs: Inputs, matches: Tensor) -> Provider:
    leaves = [inputs.mask_embed, inputs.pixel_features]
    return Provider(
        lambda: loss(inputs, matches), lambda losses: torch.autograd.grad(losses.sum(), leaves)
    )


def comparison(sizes: CaseSizes, device: torch.device) -> Comparison:
    floor = loss_floor(sizes)
    return loss_comparison(native, reference, provider, sizes, device, tolerance=1e-4, floor=floor)


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    return comparison(sizes_of(case, shrink), device)


test_mask_loss = comparison_test(CASES, [NATIVE, REFERENCE, COMPILE], make)
