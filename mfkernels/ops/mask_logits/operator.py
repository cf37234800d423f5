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
    """The gradients in operators of PyTorch, so that they can be differentiated again.

    These are the operators that `einsum` calls; `einsum` itself does not support
    `is_grads_batched`.
    """
    mask_embed, pixel_features = ctx.saved_tensors
    embed_needed, features_needed = ctx.needs_input_grad
    layers, images, queries, channels = mask_embed.shape
    height, width = grad_logits.shape[3:]
    pixels = height * width
    grad_rows = grad_logits.transpose(0, 1).reshape(images, layers * queries, pixels)
    grad_embed = grad_features = None
    if embed_needed:
        columns = pixel_features.reshape(images, channels, pixels).transpose(1, 2)
        grad_embed = torch.bmm(grad_rows, columns).reshape(images, layers, queries, channels)
        grad_embed = grad_embed.transpose(0, 1)
    if features_needed:
        rows = mask_embed.transpose(0, 1).reshape(images, layers * queries, channels)
        grad_features = torch.bmm(rows.transpose(1, 2), grad_rows)
        grad_features = grad_features.reshape(images, channels, height, width)
    return grad_embed, grad_features


register("mask_logits", check=check, fake=fake, setup_context=save(), backward=backward)
