"""Join the layers that a model returns one by one to one tensor, so that one launch runs them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfkernels.torch_internals import is_transformed


class _SideBySide(torch.autograd.Function):
    """Layers at equal distances in one storage, viewed as one tensor."""

    @staticmethod
    def forward(ctx: Any, step: int, *layers: Tensor) -> Tensor:
        first = layers[0].detach()
        return first.as_strided((len(layers), *first.shape), (step, *first.stride()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *gradient.unbind())


def joined(layers: Sequence[Tensor], most_copied: float) -> Tensor | None:
    """Join layers to one tensor `[L, ...]`; None if they differ or are too large to copy.

    Slices of one tensor, as the official model returns, are not copied.

    Args:
        layers: the layers.
        most_copied: copy at most this many bytes.
    """
    first = layers[0]
    if len(layers) == 1:
        return first[None]
    if torch.compiler.is_compiling() or is_transformed() or not all(_is_plain(x) for x in layers):
        return None
    if len({(x.shape, x.dtype, x.device) for x in layers}) > 1:
        return None
    step = _distance(layers)
    if step is not None:
        side_by_side: Tensor = _SideBySide.apply(step, *layers)
        return side_by_side
    return torch.stack(list(layers)) if len(layers) * first.nbytes <= most_copied else None


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta


def _distance(layers: Sequence[Tensor]) -> int | None:
    """Return the distance in elements between layers in one storage, or None."""
    first = layers[0]
    storage = first.untyped_storage().data_ptr()
    if any(
        x.untyped_storage().data_ptr() != storage or x.stride() != first.stride() for x in layers
    ):
        return None
    offsets = [int(x.storage_offset()) for x in layers]
    step = offsets[1] - offsets[0]
    equal = all(b - a == step for a, b in itertools.pairwise(offsets))
    return step if step > 0 and equal else None
