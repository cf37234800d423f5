"""Mask logits of all layers, forward and backward.

The baseline (`reference`) is the official code's `einsum`. There is no native GPU kernel, so on a
GPU `native` runs PyTorch operators too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Floor, Provider, compiled
from harness.inputs import CASES, Inputs, make_inputs, sizes_of
from harness.plugin import comparison_test
from torch import Tensor

from mfkernels import mask_logits


def native(inputs: Inputs) -> Tensor:
    return mask_logits(inputs.mask_embed, inputs.pixel_features)


def reference(inputs: Inputs) -> Tensor:
    return torch.einsum("lbqc,bchw->lbqhw", inputs.mask_embed, inputs.pixel_features)


def provider(logits: Callable[[Inputs], Tensor], inputs: Inputs) -> Provider:
    embed, features = inputs.mask_embed, inputs.pixel_features
    given = torch.ones(
        *embed.shape[:3], *features.shape[2:], dtype=embed.dtype, device=embed.device
    )
    return Provider(
        lambda: logits(inputs),
        lambda values: torch.autograd.grad(values, [embed, features], given),
    )


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    sizes = sizes_of(case, shrink)
    inputs = make_inputs(sizes, device)
    build = partial(provider, inputs=inputs)
    logits = sizes.layers * sizes.queries * sizes.pixels
    return Comparison(
        {
            NATIVE: lambda: build(native),
            REFERENCE: lambda: build(reference),
            COMPILE: lambda: build(compiled(reference)),
        },
        truth=provider(reference, make_inputs(sizes, device, torch.float64)),
        tolerance=sizes.tolerance(1e-5),
        # Three products (logits and two gradients). Minimum memory traffic: the logits are written
        # once and their gradient is read twice.
        floor=Floor(6 * logits * sizes.channels, 3 * sizes.dtype.itemsize * logits, sizes.dtype),
        given=inputs.tensors,
    )


test_mask_logits = comparison_test(CASES, [NATIVE, REFERENCE, COMPILE], make)
