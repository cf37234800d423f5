"""Check the arguments that a caller passes to operations."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfkernels.scalars import check_number, check_one_number
from mfkernels.targets import SegmentTargets, holds_values
from mfkernels.torch_internals import is_traced
from mfkernels.triton import devices

_HARMLESS_BYTES = 1 << 28
"""A copy of this size is harmless, however small the memory of the view is."""
_MAX_REPETITION = 64
"""How many times larger than its memory a view may be."""
_LARGEST = sys.float_info.max
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""The dtypes that operations support: all of at least 16 bits."""


def is_inflated(sizes: Sequence[int], strides: Sequence[int], item_size: int) -> bool:
    """Whether a view repeats its memory so often that a copy would take far more memory.

    Strides are in elements.
    """
    elements = math.prod(sizes)
    if elements * item_size <= _HARMLESS_BYTES:
        return False
    extent = 1 + sum((size - 1) * abs(stride) for size, stride in zip(sizes, strides, strict=True))
    return elements // _MAX_REPETITION > extent


def check_memory(name: str, tensor: Tensor) -> None:
    """Raise ValueError for an expanded view whose contiguous copy would take far more memory."""
    if torch.compiler.is_compiling() or tensor.layout != torch.strided or tensor.is_contiguous():
        return
    if is_inflated(tensor.shape, tensor.stride(), tensor.element_size()):
        raise ValueError(
            f"{name} is an expanded view that repeats its memory too often, got shape "
            f"{list(tensor.shape)}; if this is intended, copy it with contiguous()"
        )


def check_tensor(name: str, tensor: Tensor) -> None:
    # PyTorch's dispatcher would accept None as an undefined tensor.
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout)
        dense = "to_padded_tensor(0)" if tensor.is_nested else "to_dense()"
        raise TypeError(f"{name} must be a dense tensor, got a {kind} one; convert it with {dense}")
    if tensor.is_complex() or tensor.is_quantized:
        raise TypeError(f"{name} must hold plain real numbers, got {tensor.dtype}")


def has_autocast(device_type: str) -> bool:
    """Whether this device type supports autocast at all: "meta" does not."""
    # `torch.compile` of torch 2.11 cannot trace this query; all that it compiles for do.
    return torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context that disables autocast, if this device type supports it at all."""
    if not has_autocast(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def usable_by_autograd(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy of an inference tensor, which autograd could not save."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return tensor
    return tensor.clone() if tensor.is_inference() else tensor


class MaskPredictions(NamedTuple):
    """Checked mask predictions with a layer axis: two factors, or dense logits and None."""

    embed: Tensor
    """`[L, B, Q, C]` embeddings, or `[L, B, Q, h, w]` logits."""
    features: Tensor | None
    """`[B, C, h, w]`, or None."""
    had_layers: bool
    """Whether the caller passed a layer axis."""


def check_predictions(mask_embed: Tensor, pixel_features: Tensor | None) -> MaskPredictions:
    """Check the two factors (or dense logits and None) and add the layer axis where it is missing.

    Raises:
        TypeError: a dtype is not floating-point.
        ValueError: shapes or devices do not fit together, or there is no query or pixel.
    """
    check_floating("mask_embed", mask_embed)
    shape = list(mask_embed.shape)
    if pixel_features is None:
        if mask_embed.ndim not in (4, 5):
            raise ValueError(
                "without pixel_features, mask logits [L, B, Q, h, w] or [B, Q, h, w] are "
                f"expected; got {shape}"
            )
        had_layers = mask_embed.ndim == 5
        queries, pixels = mask_embed.shape[-3], mask_embed.shape[-2] * mask_embed.shape[-1]
    else:
        check_floating("pixel_features", pixel_features)
        if mask_embed.ndim not in (3, 4):
            raise ValueError(f"mask_embed must be [L, B, Q, C] or [B, Q, C], got {shape}")
        if pixel_features.ndim != 4:
            raise ValueError(
                f"pixel_features must be [B, C, h, w], got {list(pixel_features.shape)}"
            )
        had_layers = mask_embed.ndim == 4
        batch, channels, height, width = pixel_features.shape
        if (mask_embed.shape[-3], mask_embed.shape[-1]) != (batch, channels):
            raise ValueError(
                "mask_embed and pixel_features must agree in B and C: "
                f"got mask_embed {shape} and pixel_features {list(pixel_features.shape)}"
            )
        check_device("pixel_features", pixel_features, mask_embed.device)
        queries, pixels = mask_embed.shape[-2], height * width
    if queries == 0 or pixels == 0:
        given = (
            "" if pixel_features is None else f" and pixel_features {list(pixel_features.shape)}"
        )
        raise ValueError(
            f"expected at least one query and one pixel, got mask_embed {shape}{given}"
        )
    if pixel_features is not None:
        pixel_features = usable_by_autograd(pixel_features)
    layered = mask_embed if had_layers else mask_embed[None]
    return MaskPredictions(layered, pixel_features, had_layers)


def check_targets(targets: SegmentTargets, predictions: MaskPredictions) -> None:
    if not isinstance(targets, SegmentTargets):
        raise TypeError(f"targets must be SegmentTargets, got {type(targets).__name__}")
    images = predictions.embed.shape[1]
    if targets.batch_size != images:
        raise ValueError(f"targets hold {targets.batch_size} images, but the predictions {images}")
    check_device("targets", targets.labels, predictions.embed.device)
    if 0 in targets.size:
        raise ValueError(f"targets must have at least one pixel, got size {targets.size}")
    for name in ("label_map", "masks"):
        segments = getattr(targets, name)
        if segments is not None:
            check_memory(name, segments)


def result_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return the dtype of losses and costs: float64 if a tensor is float64, otherwise float32."""
    return (
        torch.float64
        if any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
        else torch.float32
    )


def native_problem(*tensors: Tensor | None) -> str | None:
    """Return why native kernels do not support these tensors, or None if they do.

    GPU kernels do not support float64, and some GPUs do not support bfloat16.
    """
    for tensor in tensors:
        if tensor is None or not tensor.is_cuda:
            continue
        if tensor.dtype == torch.float64:
            return "the kernels for GPUs do not compute in float64"
        if tensor.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
            gpu = devices.gpu_of(tensor.device)
            if not gpu.generation.bfloat16:
                return f"{gpu.name} does not support bfloat16; use float16 or float32"
    return None


def check_floating(name: str, tensor: Tensor) -> None:
    check_tensor(name, tensor)
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must have at least 16 bits, got {tensor.dtype}")
    check_memory(name, tensor)


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    check_tensor(name, tensor)
    if tensor.device != device:
        raise ValueError(
            f"{name} must be on {device} like the predictions, but is on {tensor.device}"
        )


def check_num_masks(num_masks: float | Tensor) -> None:
    check_number("num_masks", num_masks)
    if isinstance(num_masks, Tensor) and num_masks.ndim > 0:
        raise ValueError(f"num_masks must be a number or 0-dim, got {list(num_masks.shape)}")
    # On a GPU, reading the value would wait for the device.
    on_host = not isinstance(num_masks, Tensor) or holds_values(num_masks)
    if on_host and not num_masks > 0:
        raise ValueError(f"num_masks must be positive, got {num_masks}")


def check_focal(alpha: float | Tensor, gamma: float | Tensor, *, learnable: bool = False) -> None:
    """Check `alpha` and `gamma`.

    `learnable`: accept tensors that require a gradient, because the caller computes it.
    """
    given: tuple[tuple[str, Any], ...] = (("alpha", alpha), ("gamma", gamma))
    for name, value in given:
        check_number(name, value)
        if isinstance(value, Tensor):
            check_one_number(name, value, learnable)
    if _is_readable(gamma) and not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
    if _is_readable(alpha) and not alpha <= 1:
        raise ValueError(f"alpha must be at most 1 (negative: no weighting), got {alpha}")
    for name, value in given:
        if _is_readable(value) and not _is_finite(value):
            raise ValueError(f"{name} must be finite, got {value}")


def _is_readable(value: float | Tensor) -> bool:
    """Whether the value can be read: it is a number, or a tensor with data."""
    return not isinstance(value, Tensor) or not (value.is_meta or is_traced(value))


def _is_finite(value: Any) -> bool:
    # Only integers are compared with the largest float: of NumPy's float32, it would be infinite.
    return abs(value) < math.inf and not (isinstance(value, int) and abs(value) > _LARGEST)
