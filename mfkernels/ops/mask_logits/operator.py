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
        torch.einsum("lbqhw,bchw->lbqc", grad_logits, pixel_features) if embed_needed else None,
        torch.einsum("lbqhw,lbqc->bchw", grad_logits, mask_embed) if features_needed else None,
    )


register("mask_logits", check=check, fake=fake, setup_context=save(), backward=backward)
