"""Matching cost of all layers, including the mask logits; there is no backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Provider, compiled
from harness.inputs import CASES, CaseSizes, Inputs, make_inputs, matching_floor, sizes_of
from harness.plugin import comparison_test
from torch import Tensor

from mfkernels import matching_cost, use_backend


def native(inputs: Inputs) -> Tensor:
    return matching_cost(*inputs.leaves, inputs.targets)


@torch.no_grad()
def reference(inputs: Inputs) -> Tensor:
    with use_backend("reference"):
        return native(inputs)


def provider(cost: Callable[[Inputs], Tensor], inputs: Inputs) -> Provider:
    return Provider(lambda: cost(inputs))


def comparison(sizes: CaseSizes, device: torch.device) -> Comparison:
    inputs = make_inputs(sizes, device)
    build = partial(provider, inputs=inputs)
    return Comparison(
        {
            NATIVE: lambda: build(native),
            REFERENCE: lambda: build(reference),
            COMPILE: lambda: build(compiled(reference)),
        },
        truth=provider(reference, make_inputs(sizes, device, torch.float64)),
        tolerance=1e-5,
        floor=matching_floor(sizes),
        given=inputs.tensors,
    )


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    return comparison(sizes_of(case, shrink), device)


test_matching_cost = comparison_test(CASES, [NATIVE, REFERENCE, COMPILE], make)
