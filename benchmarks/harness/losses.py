"""The comparison shared by the benchmarks of losses for given matches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Floor, Provider, compiled
from harness.inputs import CaseSizes, Inputs, make_inputs, random_matches
from torch import Tensor

Loss = Callable[[Inputs, Tensor], Tensor]
"""Computes the losses from the inputs and the matches `[L, B, T]`."""


def loss_comparison(
    native: Loss,
    reference: Loss,
    provider: Callable[[Loss, Inputs, Tensor], Provider],
    sizes: CaseSizes,
    device: torch.device,
    *,
    tolerance: float,
    floor: Floor,
) -> Comparison:
    """Compare two implementations of a loss on random matches.

    `provider` combines a loss function with its backward pass.
    """
    inputs = make_inputs(sizes, device)
    matches = random_matches(inputs)
    build = partial(provider, inputs=inputs, matches=matches)
    return Comparison(
        {
            NATIVE: lambda: build(native),
            REFERENCE: lambda: build(reference),
            COMPILE: lambda: build(compiled(reference)),
        },
        truth=lambda: provider(reference, make_inputs(sizes, device, torch.float64), matches)(),
        tolerance=sizes.tolerance(tolerance),
        floor=floor,
        given=inputs.tensors,
    )
