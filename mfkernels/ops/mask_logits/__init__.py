"""Mask logits from their two factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.checks import check_masks
from mfkernels.ops.common import operator_checks
from mfkernels.ops.mask_logits import reference


def mask_logits(mask_embed: Tensor, pixel_features: Tensor | None) -> Tensor:
    """`einsum("lbqc,bchw->lbqhw", mask_embed, pixel_features)` (MaskFormer, §3.3).

    Args:
        mask_embed: `[L, B, Q, C]` or `[B, Q, C]`, any floating-point dtype.
        pixel_features: `[B, C, h, w]`. None: `mask_embed` already holds logits and is returned as
            it is.

    Returns:
        `[L, B, Q, h, w]` or `[B, Q, h, w]`, in the wider of the two dtypes (autocast applies).
        Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape or device does not fit.
    """
    masks = check_masks(mask_embed, pixel_features)
    if masks.features is None:
        return mask_embed
    embed, features = masks.embed, masks.features
    dtype = torch.promote_types(embed.dtype, features.dtype)
    if torch.is_autocast_enabled(embed.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(embed.device.type)
    embed, features = embed.to(dtype), features.to(dtype)
    if backend.select("mask_logits", embed.device) == "native" and not embed.is_cuda:
        logits = torch.ops.mfkernels.mask_logits(embed, features)
    else:
        logits = reference.mask_logits(embed, features)
    return logits if masks.had_layers else logits[0]


def _fake(mask_embed: Tensor, pixel_features: Tensor) -> Tensor:
    operator_checks.mask_logits(mask_embed, pixel_features)
    return mask_embed.new_empty((*mask_embed.shape[:3], *pixel_features.shape[2:]))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
    mask_embed, pixel_features = ctx.saved_tensors
    embed_needed, features_needed = ctx.needs_input_grad
    return (
        torch.einsum("lbqhw,bchw->lbqc", grad_logits, pixel_features) if embed_needed else None,
        torch.einsum("lbqhw,lbqc->bchw", grad_logits, mask_embed) if features_needed else None,
    )


if hasattr(torch.ops.mfkernels, "mask_logits"):
    torch.library.register_fake("mfkernels::mask_logits", _fake)
    torch.library.register_autograd(
        "mfkernels::mask_logits", _backward, setup_context=_setup_context
    )
