"""Memory for time in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mfkernels.backend import requested, use_backend
from mfkernels.torch_internals import is_transformed


def recomputed(
    function: Callable[..., tuple[Tensor, Tensor]], *arguments: Any
) -> tuple[Tensor, Tensor]:
    """`function(*arguments)`; what it holds in between is computed again in the backward pass.

    Kept after all inside a transformation of `torch.func`, which knows no recomputation.
    """
    if is_transformed():
        return function(*arguments)
    asked_for = requested()

    def served_alike(*arguments: Any) -> tuple[Tensor, Tensor]:
        """In the backward pass too, which may be another thread's."""
        with use_backend(asked_for):
            return function(*arguments)

    focal_and_dice: tuple[Tensor, Tensor] = checkpoint(
        function if torch.compiler.is_compiling() else served_alike,
        *arguments,
        use_reentrant=False,
        preserve_rng_state=False,
    )
    return focal_and_dice
