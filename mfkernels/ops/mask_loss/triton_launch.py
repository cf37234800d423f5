"""Focal and dice loss of matched masks at target size, and their gradients.

Forward: logits of the matched rows at mask resolution (one product), sums over the fine pixels of
each row (partial, then joined). Backward: the same logits again, the slope of the losses brought
down to mask resolution, then one product for the gradient of each factor. Nothing of target size is
ever stored, and nothing is added atomically.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.mask_loss.triton_pixels import loss_kernel, slopes_kernel, totals_kernel
from mfkernels.ops.mask_loss.triton_rows import (
    embed_kernel,
    embed_sum_kernel,
    features_kernel,
    logits_kernel,
    scatter_kernel,
)
from mfkernels.triton import launcher
from mfkernels.triton.launcher import cdiv, power_of_2
from mfkernels.triton.tensors import (
    HALVES,
    check_floats,
    float32_precision,
    focal_weights,
    pixel_stride,
    stored_segments,
    with_flat_pixels,
)

WORKSPACE = 1 << 25
"""Elements of a workspace of logits or slopes (128 MiB); larger batches go in groups of images."""

CELLS_OF_A_PROGRAM = 512
MASK_ROWS_OF_A_PROGRAM = 32
PIXELS_OF_A_PROGRAM = 2048


class _Problem:
    """Sizes, and the arguments that kernels have in common."""

    def __init__(
        self,
        mask_embed: Tensor,
        pixel_features: Tensor | None,
        label_map: Tensor | None,
        masks: Tensor | None,
        counts: Tensor,
        assignment: Tensor,
        alpha: float,
        gamma: float,
    ) -> None:
        check_floats("mask_loss", mask_embed, pixel_features)
        self.factored = pixel_features is not None
        self.embed = mask_embed if self.factored else with_flat_pixels(mask_embed)
        self.features = self.embed if pixel_features is None else with_flat_pixels(pixel_features)
        self.segments = stored_segments(label_map, masks)
        self.counts = counts
        self.assignment = assignment.contiguous()
        self.layers, self.images, self.queries = mask_embed.shape[:3]
        self.max_count = assignment.shape[2]
        self.height, self.width = self.features.shape[-2:]
        self.target_height, self.target_width = self.segments.shape[-2:]
        self.channels = mask_embed.shape[3] if self.factored else 1
        self.pixels = self.height * self.width
        if 4 * (self.height + 1) * self.target_height >= 2**31 or (
            4 * (self.width + 1) * self.target_width >= 2**31
        ):
            raise ValueError(
                "masks and targets are too large for 32-bit positions: "
                f"{self.height}x{self.width} and {self.target_height}x{self.target_width}"
            )
        self.rows = self.layers * self.max_count
        per_image = max(self.rows * self.pixels, 1)
        self.group = max(1, min(self.images, WORKSPACE // per_image))
        positive_weight, negative_weight = focal_weights(alpha)
        self.focal = (positive_weight, negative_weight, float(gamma))
        vertical = _phases(self.height, self.target_height)
        horizontal = _phases(self.width, self.target_width)
        whole = self.target_height % self.height == 0 and self.target_width % self.width == 0
        if whole:
            weights = (*_whole_weights(vertical), *_whole_weights(horizontal))
        else:
            weights = (0.5 / self.target_height, 0.0, 0.5 / self.target_width, 0.0)
        self.sampling: tuple[int | float, ...] = (
            self.max_count,
            self.height,
            self.width,
            self.target_height,
            self.target_width,
            vertical,
            horizontal,
            *weights,
        )
        self.options: dict[str, Any] = {
            "FACTORED": self.factored,
            "LABEL_MAP": label_map is not None,
            "SQUARE": gamma == 2,
            "WHOLE": whole,
            "BLOCK_B": min(power_of_2(self.images), 64),
        }
        self.precision = float32_precision()

    def groups(self) -> list[tuple[int, int]]:
        """First image and number of images of each group."""
        firsts = range(0, self.images, self.group)
        return [(first, min(self.group, self.images - first)) for first in firsts]

    def workspace(self, group: int) -> Tensor:
        shape = (self.layers, group, self.max_count, self.pixels)
        return self.assignment.new_empty(shape, dtype=torch.float32)

    def logits(self, first: int, group: int) -> Tensor:
        """Logits of matched segments of some images; dense ones are there already."""
        if not self.factored:
            return self.embed
        logits = self.workspace(group)
        half = self.embed.dtype == self.features.dtype and self.embed.dtype in HALVES
        launcher.launch(
            logits_kernel,
            (cdiv(self.pixels, 64), cdiv(self.rows, 64), group),
            self.embed,
            self.features,
            self.assignment,
            self.counts,
            logits,
            first,
            *self.row_sizes,
            self.channels,
            self.pixels,
            self.max_count,
            *self.embed.stride(),
            *self.features_strides,
            HALF=half,
            PRECISION=self.precision,
            BLOCK_R=64,
            BLOCK_P=64,
            BLOCK_C=32,
            num_warps=8,
            num_stages=3,
        )
        return logits

    @property
    def row_sizes(self) -> tuple[int, int, int]:
        return self.images, self.layers, self.queries

    @property
    def features_strides(self) -> tuple[int, int, int]:
        return self.features.stride(0), self.features.stride(1), pixel_stride(self.features)

    @property
    def logits_strides(self) -> tuple[int, int, int, int]:
        """Of dense logits by layer, image, query and pixel; a workspace only has the last."""
        if self.factored:
            return 0, 0, 0, 1
        layer, image, query = self.embed.stride()[:3]
        return layer, image, query, pixel_stride(self.embed)


def _phases(low: int, high: int) -> int:
    """The most fine pixels of a cell along an axis."""
    return cdiv(high, low)


def _whole_weights(ratio: int) -> tuple[float, float]:
    """Step and start of the second mask pixel's weight over the phases of a whole ratio."""
    return 1 / ratio, (1 - ratio % 2) / (2 * ratio)


def mask_loss(
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    counts: Tensor,
    assignment: Tensor,
    alpha: float,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `mfkernels::mask_loss`; see csrc/torch_library.cpp for the arguments."""
    problem = _Problem(
        mask_embed, pixel_features, label_map, masks, counts, assignment, alpha, gamma
    )
    shape = assignment.shape
    focal = assignment.new_empty(shape, dtype=torch.float32)
    dice = assignment.new_empty(shape, dtype=torch.float32)
    sums = assignment.new_empty((*shape, 3), dtype=torch.float32)
    if focal.numel() == 0:
        return focal, dice, sums
    chunks = cdiv((problem.height + 1) * (problem.width + 1), CELLS_OF_A_PROGRAM)
    partial = assignment.new_empty((*shape, chunks, 4), dtype=torch.float32)
    for first, group in problem.groups():
        launcher.launch(
            loss_kernel,
            (chunks, problem.rows, group),
            problem.logits(first, group),
            problem.segments,
            problem.assignment,
            counts,
            partial,
            first,
            *problem.row_sizes,
            *problem.sampling,
            *problem.logits_strides,
            *problem.focal,
            **problem.options,
            BLOCK=CELLS_OF_A_PROGRAM,
            num_warps=4,
            maxnreg=128,  # as for the slopes
        )
    launcher.launch(
        totals_kernel,
        (cdiv(focal.numel(), 32),),
        partial,
        problem.assignment,
        counts,
        focal,
        dice,
        sums,
        problem.images,
        problem.queries,
        problem.max_count,
        chunks,
        focal.numel(),
        float(problem.target_height * problem.target_width),
        BLOCK=32,
        num_warps=1,
    )
    return focal, dice, sums


def mask_loss_backward(
    grad_focal: Tensor,
    grad_dice: Tensor,
    sums: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    counts: Tensor,
    assignment: Tensor,
    alpha: float,
    gamma: float,
    embed_needed: bool,
    features_needed: bool,
) -> tuple[Tensor, Tensor]:
    """The operator `mfkernels::mask_loss_backward`; see csrc/torch_library.cpp."""
    problem = _Problem(
        mask_embed, pixel_features, label_map, masks, counts, assignment, alpha, gamma
    )
    features_needed = features_needed and pixel_features is not None
    like = mask_embed if pixel_features is None else pixel_features
    grad_embed = mask_embed.new_empty(mask_embed.shape if embed_needed else (0,))
    grad_features = like.new_empty(like.shape if features_needed else (0,))
    if not (embed_needed or features_needed):
        return grad_embed, grad_features
    if problem.rows == 0:
        return grad_embed.zero_(), grad_features.zero_()
    stretches = cdiv(problem.pixels, PIXELS_OF_A_PROGRAM)
    partial = sums.new_empty(
        (stretches, *assignment.shape, problem.channels)
        if embed_needed and problem.factored
        else (0,)
    )
    for first, group in problem.groups():
        logits = problem.logits(first, group)
        slopes = problem.workspace(group)
        launcher.launch(
            slopes_kernel,
            (
                cdiv(problem.rows * (problem.width + 1), CELLS_OF_A_PROGRAM - 1),
                cdiv(problem.height, MASK_ROWS_OF_A_PROGRAM),
                group,
            ),
            logits,
            problem.segments,
            problem.assignment,
            counts,
            sums,
            grad_focal,
            grad_dice,
            slopes,
            first,
            *problem.row_sizes,
            *problem.sampling,
            *problem.logits_strides,
            *grad_focal.stride(),
            *grad_dice.stride(),
            *problem.focal,
            **problem.options,
            MASK_ROWS=MASK_ROWS_OF_A_PROGRAM,
            BLOCK=CELLS_OF_A_PROGRAM,
            num_warps=8,
            maxnreg=128,  # without it ptxas may spill a little to have another program at a time
        )
        common = (first, *problem.row_sizes, problem.channels, problem.pixels, problem.max_count)
        if not problem.factored:
            launcher.launch(
                scatter_kernel,
                (cdiv(problem.pixels, 1024), problem.layers * problem.queries, group),
                slopes,
                problem.assignment,
                counts,
                grad_embed,
                first,
                problem.images,
                problem.queries,
                problem.pixels,
                problem.max_count,
                BLOCK=1024,
                num_warps=4,
            )
        elif embed_needed:
            launcher.launch(
                embed_kernel,
                (stretches, cdiv(problem.rows, 32) * cdiv(problem.channels, 64), group),
                slopes,
                problem.features,
                problem.assignment,
                counts,
                partial,
                *common,
                *problem.features_strides,
                PRECISION=problem.precision,
                BLOCK_R=32,
                BLOCK_C=64,
                BLOCK_P=32,
                PIXELS=PIXELS_OF_A_PROGRAM,
                num_warps=8,
                num_stages=3,
            )
        if features_needed:
            launcher.launch(
                features_kernel,
                (cdiv(problem.pixels, 64), cdiv(problem.channels, 64), group),
                slopes,
                problem.embed,
                problem.assignment,
                counts,
                grad_features,
                *common,
                *problem.embed.stride(),
                PRECISION=problem.precision,
                BLOCK_R=32,
                BLOCK_C=64,
                BLOCK_P=64,
                num_warps=8,
                num_stages=2,
            )
    if embed_needed and problem.factored:
        launcher.launch(
            embed_sum_kernel,
            (problem.layers * problem.queries, cdiv(problem.channels, 256), problem.images),
            partial,
            problem.assignment,
            counts,
            grad_embed,
            problem.layers,
            problem.queries,
            problem.channels,
            problem.max_count,
            stretches,
            BLOCK_C=256,
            num_warps=4,
        )
    return grad_embed, grad_features
