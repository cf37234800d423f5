"""Prepare and check tensors before they are passed to a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def with_flat_pixels(tensor: Tensor) -> Tensor:
    """`[..., h, w]` whose pixels have one stride, copied only if they do not have one yet."""
    height, width = tensor.shape[-2:]
    row, column = tensor.stride()[-2:]
    if height == 1 or width == 1 or row == width * column:
        return tensor
    return tensor.contiguous()


def pixel_stride(tensor: Tensor) -> int:
    """Elements from one pixel of `[..., h, w]` to the next, in row-major order of the pixels."""
    return tensor.stride(-1) if tensor.shape[-1] > 1 else tensor.stride(-2)


def stored_segments(label_map: Tensor | None, masks: Tensor | None) -> Tensor:
    """The storage of the segments, contiguous: int16 `[B, H, W]`, or uint8 `[N, H, W]`."""
    if label_map is not None:
        return label_map.contiguous()
    assert masks is not None
    return masks.contiguous().view(torch.uint8)


def check_floats(operation: str, *given: Tensor | None) -> None:
    """Raise for a dtype that the kernels do not take; they compute in float32."""
    for tensor in given:
        if tensor is not None and tensor.dtype not in (*HALVES, torch.float32):
            raise TypeError(
                f"{operation} on a GPU takes float32, bfloat16 and float16, got {tensor.dtype}"
            )


def tf32_allowed() -> bool:
    """Whether the user lets products of float32 matrices have the precision of TF32.

    Otherwise kernels form them from parts of their factors, as exactly as float32 does.
    """
    # `allow_tf32` raises once the user has chosen through `fp32_precision`; this one knows both.
    return torch.backends.cuda.matmul.fp32_precision == "tf32"
