"""Stack predictions that a model returns layer by layer, so that one kernel launch covers all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfkernels.torch_internals import is_transformed


class _StridedView(torch.autograd.Function):
    """View layers that lie at a constant stride in one storage as a single tensor, without a copy.

    Autograd needs this function because `as_strided` knows nothing of the other layers.
    """

    @staticmethod
    def forward(ctx: Any, stride: int, *layers: Tensor) -> Tensor:
        # Of in-place changes, the view knows only those of the first layer.
        ctx.save_for_backward(*layers)
        first = layers[0].detach()
        return first.as_strided((len(layers), *first.shape), (stride, *first.stride()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # raises an error if a layer was changed in place
        return (None, *gradient.unbind())


def stack_layers(layers: Sequence[Tensor], max_copied_bytes: float) -> Tensor | None:
    """Stack layers into one tensor `[L, ...]`; return None if that is not possible.

    It is not possible if the layers differ in shape, dtype or device, or if they would have to be
    copied and are too large for that; nor under `torch.compile`, in `torch.func` transforms, or for
    meta tensors and subclasses. Slices of one tensor, which the official model returns, are viewed
    instead of copied.

    Args:
        layers: one tensor per layer.
        max_copied_bytes: the largest total size to copy.
    """
    first = layers[0]
    if len(layers) == 1:
        return first[None]
    if torch.compiler.is_compiling() or is_transformed() or not all(_is_plain(x) for x in layers):
        return None
    if len({(x.shape, x.dtype, x.device) for x in layers}) > 1:
        return None
    stride = _layer_stride(layers)
    if stride is not None:
        view: Tensor = _StridedView.apply(stride, *layers)
        return view
    return torch.stack(list(layers)) if len(layers) * first.nbytes <= max_copied_bytes else None


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta


def _layer_stride(layers: Sequence[Tensor]) -> int | None:
    """Return the stride in elements between layers of one storage; None if it is not constant."""
    first = layers[0]
    storage = first.untyped_storage().data_ptr()
    if any(
        x.untyped_storage().data_ptr() != storage or x.stride() != first.stride() for x in layers
    ):
        return None
    if any(x.is_neg() for x in layers):  # PyTorch changes their sign when it reads them
        return None
    offsets = [int(x.storage_offset()) for x in layers]
    stride = offsets[1] - offsets[0]
    constant = all(b - a == stride for a, b in itertools.pairwise(offsets))
    return stride if stride > 0 and constant else None
