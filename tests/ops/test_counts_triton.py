"""Numbers of segments that do not fit their tensors, in Triton's interpreter.

They are read on the device, so nobody can refuse them without waiting for it. Kernels clamp them;
the plugin `helpers.gpu.interpreter` refuses every address outside of the arguments.
"""

from __future__ import annotations

import pytest
import torch
from helpers.strategies import Case
from torch import Tensor

from mfkernels.ops.class_loss import triton_launch as class_kernels
from mfkernels.ops.mask_loss import triton_launch as mask_loss_kernels
from mfkernels.ops.matching_cost import triton_launch as cost_kernels

LAYERS, MOST, SEGMENTS = 1, 3, 5
"""The second is T, and the third N."""


def results(
    counts: list[int], *, overlap: bool, dense: bool, four: bool, keep_maps: bool
) -> list[Tensor]:
    """Of all kernels that read counts, with room for `MOST` and `SEGMENTS`."""
    size = (12, 8) if four else (5, 4)
    case = Case(LAYERS, (MOST, 0, 2), queries=4, classes=2, low=(3, 2), size=size, overlap=overlap)
    class_logits, embed, features = case.predictions()
    if dense:
        embed, features = torch.einsum("lbqc,bchw->lbqhw", embed, features), None
    targets = case.targets()
    numbers = torch.tensor(counts)
    query = torch.arange(4).expand(LAYERS, len(counts), -1)
    assignment = query[..., 1 : MOST + 1].contiguous()
    masks = (embed, features, targets.label_map, targets.masks)
    cost = cost_kernels.matching_cost(
        class_logits, *masks, targets.labels, numbers, MOST, 1.0, 20.0, 1.0, 0.25, 2.0
    )
    loss, weight, *_ = class_kernels.class_loss(
        class_logits, targets.labels, numbers, assignment, 0.1
    )
    given = (*masks, numbers, assignment, SEGMENTS, 0.25, 2.0)
    focal, dice, *saved = mask_loss_kernels.mask_loss(*given, keep_maps)
    slopes = torch.ones(2, *assignment.shape)
    gradients = mask_loss_kernels.mask_loss_backward(*slopes, *saved, *given, True, not dense)
    return [cost, loss, weight, focal, dice, *gradients]


FORMS = [
    pytest.param({"overlap": overlap, "dense": dense, "four": four, "keep_maps": keep}, id=name)
    for name, overlap, dense, four, keep in (
        ("label map", False, False, True, True),
        ("masks", True, False, True, False),
        ("dense logits", False, True, False, False),
        ("masks of any size", True, True, False, True),
    )
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("counts", "clamped"),
    [([900, 0, 2], [3, 0, 2]), ([-7, 900, 2], [0, 3, 2])],
)
def test_counts_out_of_range_are_clamped(
    counts: list[int], clamped: list[int], form: dict[str, bool]
) -> None:
    for index, (ours, expected) in enumerate(
        zip(results(counts, **form), results(clamped, **form), strict=True)
    ):
        # A number below 0 is T for gradients of embeddings: within memory that nobody wrote.
        if min(counts) >= 0 or index != 5 or form["dense"]:
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("counts", [[2**31 - 1] * 3, [3, 9 - 2**40, 10**6]])
def test_more_segments_than_there_are_read_nothing_else(
    counts: list[int], form: dict[str, bool]
) -> None:
    cost, *_ = results(counts, **form)
    assert cost.isfinite().all()
