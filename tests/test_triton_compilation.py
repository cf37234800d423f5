"""Triton kernels compiled ahead of time for GPUs that are not there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from triton_ahead import Launch, compile_launch, recorded

from mfkernels.triton.matching_cost import matching_cost

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes that one program may have, by architecture (CUDA programming guide)."""

LAYERS, IMAGES, QUERIES, CLASSES = 6, 16, 100, 150


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def predictions(dtype: torch.dtype, channels: int) -> tuple[Tensor, Tensor | None]:
    """Factors, or dense logits for 0 channels, in the sizes of ADE20K at batch 16."""
    if channels == 0:
        return meta(LAYERS, IMAGES, QUERIES, 128, 128, dtype=dtype), None
    embed = meta(LAYERS, IMAGES, QUERIES, channels, dtype=dtype)
    return embed, meta(IMAGES, channels, 128, 128, dtype=dtype)


def segments(count: int, label_map: bool) -> tuple[Tensor | None, Tensor | None]:
    if label_map:
        return meta(IMAGES, 512, 512, dtype=torch.int16), None
    return None, meta(IMAGES * count, 512, 512, dtype=torch.bool)


def launches_of_matching_cost(
    dtype: torch.dtype, channels: int, count: int, label_map: bool, gamma: float
) -> list[Launch]:
    with recorded() as launches:
        matching_cost(
            meta(LAYERS, IMAGES, QUERIES, CLASSES + 1, dtype=dtype),
            *predictions(dtype, channels),
            *segments(count, label_map),
            meta(IMAGES * count, dtype=torch.int64),
            meta(IMAGES, dtype=torch.int64),
            count,
            *(1.0, 20.0, 1.0, 0.25, gamma),
        )
    return launches


def check(launch: Launch, architecture: int, *, tensor_cores: bool) -> None:
    compiled = compile_launch(launch, architecture)
    assert compiled.spilled == 0, f"{launch.name} spills {compiled.spilled} bytes"
    assert compiled.shared <= SHARED_MEMORY[architecture]
    assert compiled.tensor_cores or not tensor_cores, f"{launch.name} has no matrix instruction"


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "channels", "count", "label_map", "gamma"),
    [
        (torch.float32, 256, 12, True, 2.0),
        (torch.float32, 256, 100, False, 2.0),
        (torch.float32, 0, 24, True, 2.0),
        (torch.bfloat16, 256, 12, True, 2.0),
        (torch.bfloat16, 256, 100, True, 1.5),
        (torch.bfloat16, 512, 24, False, 2.0),
    ],
)
def test_matching_cost(
    dtype: torch.dtype, channels: int, count: int, label_map: bool, gamma: float, architecture: int
) -> None:
    sums, cost = launches_of_matching_cost(dtype, channels, count, label_map, gamma)
    check(sums, architecture, tensor_cores=True)
    if channels == 256:
        check(cost, architecture, tensor_cores=False)
