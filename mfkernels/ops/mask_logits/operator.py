"""The operator `mask_logits`; csrc/operator_schemas.cpp describes its arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.common.arguments import check_argument
from mfkernels.ops.common.registration import register, save


def check(mask_embed: Tensor, pixel_features: Tensor) -> None:
    check_argument("mask_embed", mask_embed, ("L", "B", "Q", "C"), mask_embed)
    _, images, _, channels = mask_embed.shape
    sizes = (images, channels, "h", "w")
    check_argument("pixel_features", pixel_features, sizes, mask_embed, mask_embed.dtype)


def fake(mask_embed: Tensor, pixel_features: Tensor) -> Tensor:
    return mask_embed.new_empty((*mask_embed.shape[:3], *pixel_features.shape[2:]))


def backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """In operators of PyTorch, so that it can be differentiated again."""
    mask_embed, pixel_features = ctx.saved_tensors
    embed_needed, features_needed = ctx.needs_input_grad
    return (
        _grad_embed(pixel_features, grad_logits) if embed_needed else None,
        _grad_features(mask_embed, grad_logits) if features_needed else None,
    )


def _grad_embed(pixel_features: Tensor, grad_logits: Tensor) -> Tensor:
    if len(grad_logits) == 0:
        return grad_logits.new_zeros(*grad_logits.shape[:3], pixel_features.shape[1])
    pixels = pixel_features.flatten(2).mT
    return torch.stack([torch.bmm(grad.flatten(2), pixels) for grad in grad_logits])


def _grad_features(mask_embed: Tensor, grad_logits: Tensor) -> Tensor:
    """Layer by layer: one product over all would copy the gradient, the largest tensor here."""
    if len(mask_embed) == 0 or mask_embed.element_size() < 4:  # which would be rounded per layer
        return torch.einsum("lbqhw,lbqc->bchw", grad_logits, mask_embed)
    first, *others = zip(mask_embed, grad_logits, strict=True)
    total = torch.bmm(first[0].mT, first[1].flatten(2))
    for embed, grad in others:
        total.baddbmm_(embed.mT, grad.flatten(2))
    return total.unflatten(2, grad_logits.shape[3:])


register("mask_logits", check=check, fake=fake, setup_context=save(), backward=backward)
