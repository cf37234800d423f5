"""Trade time for memory in plain PyTorch."""

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
    """Call `function(*arguments)` with activation checkpointing.

    Its intermediate results are recomputed in the backward pass, except inside a `torch.func`
    transform and in `torch.export`, which do not support this: there they are kept.
    """
    if is_transformed() or torch.compiler.is_exporting():
        return function(*arguments)
    asked_for = requested()

    def served_alike(*arguments: Any) -> tuple[Tensor, Tensor]:
        """Use the same backend in the backward pass, which may run in another thread."""
        with use_backend(asked_for):
            return function(*arguments)

    focal_and_dice: tuple[Tensor, Tensor] = checkpoint(
        function if torch.compiler.is_compiling() else served_alike,
        *arguments,
        use_reentrant=False,
        preserve_rng_state=False,
    )
    return focal_and_dice
