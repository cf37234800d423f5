"""The criterion's kernel launches in cases A and B, and the trip counts of each kernel's loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from helpers.gpu.compiler import Launch, recorded
from torch import Tensor

from mfkernels.ops.class_loss.triton_launch import class_loss, class_loss_backward
from mfkernels.ops.loss_sums.triton_launch import loss_sums
from mfkernels.ops.mask_loss.triton_launch import mask_loss, mask_loss_backward
from mfkernels.ops.mask_loss.triton_pixels_launch import MASK_ROWS_OF_A_PROGRAM
from mfkernels.ops.matching_cost.triton_launch import matching_cost
from mfkernels.ops.matching_cost.triton_parts import PIXELS_OF_A_SCALE

LAYERS, IMAGES, QUERIES, CHANNELS = 6, 16, 100, 256


@dataclass(frozen=True)
class Case:
    """Sizes of a batch; all images have the same number of segments."""

    name: str
    segments: int
    height: int
    width: int
    classes: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


CASES = (Case("A", 9, 128, 128, 150), Case("B", 12, 200, 336, 133))
"""ADE20K and COCO as in benchmarks/NOTES.md; targets have four times the side length of masks."""


def launches_of(case: Case, dtype: torch.dtype) -> list[Launch]:
    """Launches of Triton kernels by the criterion and its backward pass, recorded without a GPU."""

    def meta(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    class_logits = meta(LAYERS, IMAGES, QUERIES, case.classes + 1, dtype=dtype)
    embed = meta(LAYERS, IMAGES, QUERIES, CHANNELS, dtype=dtype)
    features = meta(IMAGES, CHANNELS, case.height, case.width, dtype=dtype)
    label_map = meta(IMAGES, 4 * case.height, 4 * case.width, dtype=torch.int16)
    labels, counts = meta(IMAGES * case.segments), meta(IMAGES)
    assignment = meta(LAYERS, IMAGES, case.segments)
    masks = (embed, features, label_map, None)
    with recorded() as launches:
        matching_cost(
            class_logits, *masks, labels, counts, case.segments, 1.0, 20.0, 1.0, 0.25, 2.0
        )
        given = (*masks, counts, assignment, IMAGES * case.segments, 0.25, 2.0)
        focal, dice, *saved = mask_loss(*given, True)
        mask_loss_backward(focal, dice, *saved, *given, True, True)
        loss, weight, *saved = class_loss(class_logits, labels, counts, assignment, 0.1)
        loss_sums(focal, dice, loss, weight, IMAGES * case.segments, (1.0, 20.0, 1.0))
        class_loss_backward(loss, class_logits, *saved, 0.1)
    return launches


Trips = Callable[[dict[str, Any], Case], list[float]]


def _ceil_div(size: int, step: int) -> int:
    return -(-size // step)


def _sums(given: dict[str, Any], case: Case) -> list[float]:
    block, splits = given["BLOCK"], _ceil_div(case.pixels, given["BLOCK"].pixels_of_split)
    # The second "loop" is the kernel's epilogue: the assembler moved a block behind it, which
    # branches back to it once.
    return [_ceil_div(case.pixels, block.pixels) / splits + 1, 1]


def _cost(given: dict[str, Any], case: Case) -> list[float]:
    classes = _ceil_div(case.classes + 1, given["BLOCK"].classes)
    # The loops in between handle costs too large for the sums of the first kernel; they do not run.
    return [len(given["partial"].areas_ptr), 0, 0, 0, classes, classes]


def _parts(given: dict[str, Any], case: Case) -> list[float]:
    blocks = _ceil_div(case.pixels, PIXELS_OF_A_SCALE.value)
    rows = _ceil_div(LAYERS * QUERIES, given["BLOCK"].rows)
    steps, features_share = CHANNELS / given["BLOCK"].channels, blocks / (blocks + rows)
    embed_share = 1 - features_share
    return [steps * share for share in (embed_share, features_share, features_share, embed_share)]


def _pixels(given: dict[str, Any], case: Case) -> list[float]:
    chunks = -(-case.height // MASK_ROWS_OF_A_PROGRAM)
    lines = _ceil_div(case.height, chunks) + 1  # plus the line above, which another program counts
    return [lines, 4 * lines]


def _grad_embed_sum(given: dict[str, Any], case: Case) -> list[float]:
    matched = case.segments / QUERIES
    return [1, matched, matched * _ceil_div(given["splits"], 8)]


def _classes(given: dict[str, Any], case: Case) -> list[float]:
    classes = _ceil_div(case.classes + 1, given["BLOCK"].classes)
    return [1, classes, classes]


TRIPS: dict[str, Trips] = {
    "parts_kernel": _parts,
    "sums_kernel": _sums,
    "cost_kernel": _cost,
    "logits_kernel": lambda given, case: [CHANNELS / given["BLOCK"].channels],
    "members_kernel": lambda given, case: [case.segments],
    "pixels_kernel": _pixels,
    "totals_kernel": lambda given, case: [_ceil_div(given["entries"], given["BLOCK"])],
    "combine_kernel": lambda given, case: [],
    "grad_embed_kernel": lambda given, case: [
        given["BLOCK"].pixels_of_split / given["BLOCK"].pixels,
    ],
    "grad_features_kernel": lambda given, case: [
        _ceil_div(LAYERS * case.segments, given["BLOCK"].rows),
    ],
    "grad_embed_sum_kernel": _grad_embed_sum,
    "entropy_kernel": _classes,
    "sum_kernel": lambda given, case: [_ceil_div(given["parts"], given["BLOCK"])],
    "loss_sums_kernel": lambda given, case: [_ceil_div(given["size"], given["BLOCK"])] * 2,
    "gradient_kernel": lambda given, case: [_ceil_div(case.classes + 1, given["BLOCK_K"])],
}
"""For each kernel, the trip counts of its loops per program, in the order in which they begin."""

BRANCHES = {"parts_kernel": 0.5}
"""The share of the code outside loops that a program executes, if branches skip the rest."""

NOT_READ = {"cost_kernel": ("masks",)}
"""Arguments that a kernel does not normally read: only costs that are too large need them."""


def bytes_of(launch: Launch) -> int:
    """Memory traffic of a launch: every tensor among its arguments once."""
    skipped = NOT_READ.get(launch.name, ())
    given = [value for name, value in launch.arguments.items() if name not in skipped]
    return sum(x.numel() * x.element_size() for x in _tensors(given))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for part in value for x in _tensors(part)] if isinstance(value, tuple | list) else []
