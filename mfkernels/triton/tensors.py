"""Prepare and check tensors before they are passed to a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def with_flat_pixels(tensor: Tensor) -> Tensor:
    """Return a tensor `[..., h, w]` whose pixels have a single stride; copy only if necessary."""
    height, width = tensor.shape[-2:]
    row, column = tensor.stride()[-2:]
    if height == 1 or width == 1 or row == width * column:
        return tensor
    return tensor.contiguous()


def pixel_stride(tensor: Tensor) -> int:
    """The stride, in elements, between pixels of `[..., h, w]` in row-major order."""
    return tensor.stride(-1) if tensor.shape[-1] > 1 else tensor.stride(-2)


def stored_segments(label_map: Tensor | None, masks: Tensor | None) -> Tensor:
    """The targets, contiguous: the label map `[B, H, W]` int16, or the masks `[N, H, W]` uint8."""
    if label_map is not None:
        return label_map.contiguous()
    assert masks is not None
    return masks.contiguous().view(torch.uint8)


def check_floats(operation: str, *given: Tensor | None) -> None:
    """Raise TypeError for a dtype that the kernels do not support; they compute in float32."""
    for tensor in given:
        if tensor is not None and tensor.dtype not in (*HALVES, torch.float32):
            raise TypeError(
                f"{operation} on a GPU takes float32, bfloat16 and float16, got {tensor.dtype}"
            )


def tf32_allowed() -> bool:
    """Whether the user allows TF32 in products of float32 matrices.

    Otherwise kernels split the factors into parts, so that products are as exact as in float32.
    """
    # `fp32_precision` reflects both settings; `allow_tf32` raises if the user has set the former.
    return torch.backends.cuda.matmul.fp32_precision == "tf32"
