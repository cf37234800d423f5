"""What the criterion launches in cases A and B, and how often the loops of each kernel run."""

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
    """Sizes of a batch; every image has the same number of segments."""

    name: str
    segments: int
    height: int
    width: int
    classes: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


CASES = (Case("A", 9, 128, 128, 150), Case("B", 12, 200, 336, 133))
"""ADE20K and COCO as in benchmarks/NOTES.md; targets are four times as large as masks."""


def launches_of(case: Case, dtype: torch.dtype) -> list[Launch]:
    """Of Triton kernels, for the criterion and its backward pass, without a GPU."""

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


def _steps(size: int, of_a_step: int) -> int:
    return -(-size // of_a_step)


def _sums(given: dict[str, Any], case: Case) -> list[float]:
    block, splits = given["BLOCK"], _steps(case.pixels, given["BLOCK"].pixels_of_split)
    # The second one is the kernel's end, to which the assembler jumps back from behind it.
    return [_steps(case.pixels, block.pixels) / splits + 1, 1]


def _cost(given: dict[str, Any], case: Case) -> list[float]:
    classes = _steps(case.classes + 1, given["BLOCK"].classes)
    # The loops between are of costs too large for what the first kernel sums.
    return [len(given["partial"].areas_ptr), 0, 0, 0, classes, classes]


def _parts(given: dict[str, Any], case: Case) -> list[float]:
    blocks = _steps(case.pixels, PIXELS_OF_A_SCALE.value)
    rows = _steps(LAYERS * QUERIES, given["BLOCK"].rows)
    steps, of_features = CHANNELS / given["BLOCK"].channels, blocks / (blocks + rows)
    of_embed = 1 - of_features
    return [steps * share for share in (of_embed, of_features, of_features, of_embed)]


def _pixels(given: dict[str, Any], case: Case) -> list[float]:
    chunks = -(-case.height // MASK_ROWS_OF_A_PROGRAM)
    lines = _steps(case.height, chunks) + 1  # one above, whose share another program has
    return [lines, 4 * lines]


def _grad_embed_sum(given: dict[str, Any], case: Case) -> list[float]:
    matched = case.segments / QUERIES
    return [1, matched, matched * _steps(given["splits"], 8)]


def _classes(given: dict[str, Any], case: Case) -> list[float]:
    classes = _steps(case.classes + 1, given["BLOCK"].classes)
    return [1, classes, classes]


TRIPS: dict[str, Trips] = {
    "parts_kernel": _parts,
    "sums_kernel": _sums,
    "cost_kernel": _cost,
    "logits_kernel": lambda given, case: [CHANNELS / given["BLOCK"].channels],
    "members_kernel": lambda given, case: [case.segments],
    "pixels_kernel": _pixels,
    "totals_kernel": lambda given, case: [_steps(given["entries"], given["BLOCK"])],
    "combine_kernel": lambda given, case: [],
    "grad_embed_kernel": lambda given, case: [
        given["BLOCK"].pixels_of_split / given["BLOCK"].pixels,
    ],
    "grad_features_kernel": lambda given, case: [
        _steps(LAYERS * case.segments, given["BLOCK"].rows),
    ],
    "grad_embed_sum_kernel": _grad_embed_sum,
    "entropy_kernel": _classes,
    "sum_kernel": lambda given, case: [_steps(given["parts"], given["BLOCK"])],
    "loss_sums_kernel": lambda given, case: [_steps(given["size"], given["BLOCK"])] * 2,
    "gradient_kernel": lambda given, case: [_steps(case.classes + 1, given["BLOCK_K"])],
}
"""For each kernel, how often a program runs through its loops, in the order in which they begin."""

BRANCHES = {"parts_kernel": 0.5}
"""The share of the code outside of loops that a program runs through, where branches exclude it."""

NOT_READ = {"cost_kernel": ("masks",)}
"""Arguments that stay where they are: what only costs that are too large need."""


def bytes_of(launch: Launch) -> int:
    """Of memory: every tensor among the arguments once."""
    skipped = NOT_READ.get(launch.name, ())
    given = [value for name, value in launch.arguments.items() if name not in skipped]
    return sum(x.numel() * x.element_size() for x in _tensors(given))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for part in value for x in _tensors(part)] if isinstance(value, tuple | list) else []
