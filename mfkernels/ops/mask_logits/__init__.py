"""Mask logits from their two factors."""

from __future__ import annotations

import torch
from torch import Tensor

import mfkernels.ops.mask_logits.operator  # noqa: F401
from mfkernels import backend
from mfkernels.checks import check_predictions, has_autocast
from mfkernels.ops.mask_logits import reference
from mfkernels.torch_internals import has_amx

_FASTER_IN_PYTORCH = torch.bfloat16 if has_amx() else None
"""The dtype in which PyTorch's matrix product is expected to be faster than the CPU kernel: on
matrix units (AMX), which the kernel does not use."""


def mask_logits(mask_embed: Tensor, pixel_features: Tensor | None) -> Tensor:
    """Compute `einsum("lbqc,bchw->lbqhw", mask_embed, pixel_features)` (MaskFormer, §3.3).

    Args:
        mask_embed: `[L, B, Q, C]` or `[B, Q, C]`, any floating-point dtype.
        pixel_features: `[B, C, h, w]`, any floating-point dtype. None: `mask_embed` already holds
            logits and is returned unchanged.

    Returns:
        `[L, B, Q, h, w]` or `[B, Q, h, w]`, in the wider of the two dtypes; under autocast, in
        autocast's dtype unless an input is float64. Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape or device is wrong.
    """
    predictions = check_predictions(mask_embed, pixel_features)
    embed, features = predictions.embed, predictions.features
    if features is None:
        return mask_embed
    dtype = torch.promote_types(embed.dtype, features.dtype)
    device = embed.device.type
    autocast = has_autocast(device) and torch.is_autocast_enabled(device)
    if autocast and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    embed, features = embed.to(dtype), features.to(dtype)
    if backend.select("mask_logits", embed.device) != "native":
        logits = reference.mask_logits(embed, features)
    elif dtype == _FASTER_IN_PYTORCH:
        logits = _product(embed, features)
    else:
        logits = torch.ops.mfkernels.mask_logits(embed, features)
    return logits if predictions.had_layers else logits[0]


def _product(mask_embed: Tensor, pixel_features: Tensor) -> Tensor:
    """Compute the logits of two factors of one dtype as a batched matrix product.

    For channels-last features, `einsum` takes five times as long, and so does `bmm` with the
    strides that `flatten` gives the features of a single image; hence the transposed view.
    """
    layers, images, queries, channels = mask_embed.shape
    rows = mask_embed.transpose(0, 1).reshape(images, layers * queries, channels)
    if pixel_features.stride(1) < pixel_features.stride(3):
        columns = pixel_features.permute(0, 2, 3, 1).flatten(1, 2).mT
    else:
        columns = pixel_features.flatten(2)
    logits = torch.bmm(rows, columns).view(images, layers, queries, *pixel_features.shape[2:])
    return logits.transpose(0, 1)
