"""Launches of the kernels at target pixels: sums, maps and gradients with respect to the logits."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from mfkernels.ops.mask_loss.operator import Inputs
from mfkernels.ops.mask_loss.triton_cells import Axis, Block, Resize, Variant, members_kernel
from mfkernels.ops.mask_loss.triton_pixels import (
    GradLosses,
    combine_kernel,
    pixels_kernel,
    totals_kernel,
)
from mfkernels.ops.mask_loss.triton_product_kernels import Matching, Sizes
from mfkernels.triton import launcher
from mfkernels.triton.arguments import FocalParameters, Predictions
from mfkernels.triton.launcher import cdiv
from mfkernels.triton.math import images_at_once
from mfkernels.triton.tensors import stored_segments

CELLS_OF_A_PROGRAM = 128
"""One cell per thread, so that a lane gets its neighbour's share with one warp shuffle."""
MASK_ROWS_OF_A_PROGRAM = 64
CELLS_OF_MEMBERS = 256
COMBINE_BLOCK = 2048
REGISTERS = 96
"""The largest number of registers per thread of `pixels_kernel`."""


@dataclass(frozen=True)
class Pixels:
    """Targets and sizes in the form that the kernels need; the arguments that launches share."""

    segments: Tensor
    """Label map `[B, H, W]` int16, or masks `[N, H, W]` uint8."""
    matching: Matching
    resize: Resize
    focal: FocalParameters
    variant: Variant
    rows: int
    """The largest number of matched segments of an image, in all layers together."""
    images: int
    num_segments: int
    """The number of segments in all images."""

    @classmethod
    def of(cls, given: Inputs, height: int, width: int) -> Pixels:
        segments = stored_segments(given.label_map, given.masks)
        target_height, target_width = segments.shape[-2:]
        if 4 * (height + 1) * target_height >= 2**31 or 4 * (width + 1) * target_width >= 2**31:
            raise ValueError(
                "masks and targets are too large for 32-bit positions: "
                f"{height}x{width} and {target_height}x{target_width}"
            )
        four = (target_height, target_width) == (4 * height, 4 * width)
        whole = target_height % height == 0 and target_width % width == 0
        layers, images, max_count = given.assignment.shape
        num_segments = given.num_segments
        if given.masks is not None:  # the operator may be called directly with fewer
            num_segments = min(num_segments, len(given.masks))
        matching = Matching(given.assignment.contiguous(), given.counts.contiguous())
        resize = Resize(_axis(height, target_height, whole), _axis(width, target_width, whole))
        return cls(
            segments=segments,
            matching=matching,
            resize=resize,
            focal=FocalParameters.of(given.alpha, given.gamma),
            variant=Variant(
                factored=given.pixel_features is not None,
                label_map=given.label_map is not None,
                square=given.gamma == 2,
                whole=whole,
                four=four,
            ),
            rows=layers * max_count,
            images=images,
            num_segments=num_segments,
        )

    @property
    def images_at_once(self) -> int:
        """The number of images whose counts a program loads at a time."""
        return images_at_once(self.images)

    @property
    def pixels(self) -> int:
        """The number of pixels of a mask."""
        return self.resize.y.size * self.resize.x.size

    @property
    def target_pixels(self) -> int:
        return self.resize.y.target_size * self.resize.x.target_size

    @functools.cached_property
    def segments_of_cells(self) -> Tensor:
        """The bits of `members_kernel` if a cell has 4 x 4 target pixels, otherwise `segments`."""
        if not self.variant.four:
            return self.segments
        height, width = self.resize.y.size + 1, self.resize.x.size + 1
        members = self.segments.new_empty((self.num_segments, height, width), dtype=torch.int32)
        launcher.launch(
            members_kernel,
            (cdiv(height * width, CELLS_OF_MEMBERS), self.images),
            pairs_ptr=_in_pairs(self.segments),
            counts_ptr=self.matching.counts_ptr,
            members_ptr=members,
            max_count=self.matching.assignment_ptr.shape[2],
            num_segments=self.num_segments,
            resize=self.resize.as_argument(),
            LABEL_MAP=self.variant.label_map,
            BLOCK=Block(CELLS_OF_MEMBERS, self.images_at_once),
            num_warps=4,
        )
        return members

    def partial_sums(self, *, maps: bool) -> Tensor:
        """Allocate partial sums `[L, B, T, chunks, 4, w+1]`."""
        assignment = self.matching.assignment_ptr
        chunks = self._chunks(maps)
        shape = (*assignment.shape, chunks, 4, self.resize.x.size + 1)
        return assignment.new_empty(shape, dtype=torch.float32)

    def _chunks(self, maps: bool) -> int:
        """The number of programs that share the lines of cells of an image."""
        return cdiv(self.resize.y.size + (0 if maps else 1), MASK_ROWS_OF_A_PROGRAM)

    def launch(
        self,
        logits: Predictions,
        sizes: Sizes,
        images: int,
        *,
        partial: Tensor | None = None,
        maps: Tensor | None = None,
        grad_losses: GradLosses | None = None,
    ) -> None:
        """Fill the parts of `partial` and `maps` that belong to a group of images.

        With `grad_losses`, `maps` is the gradient with respect to the logits.
        """
        warps = CELLS_OF_A_PROGRAM // 32
        cells = CELLS_OF_A_PROGRAM - (0 if maps is None else warps)
        num_maps = 0 if maps is None else 3 if grad_losses is None else 1
        launcher.launch(
            pixels_kernel,
            (
                cdiv(self.rows * (self.resize.x.size + 1), cells),
                self._chunks(maps is not None),
                images,
            ),
            logits=logits,
            segments_ptr=self.segments_of_cells,
            matching=self.matching,
            partial_ptr=partial,
            grad_losses=grad_losses,
            maps_ptr=maps,
            sizes=sizes.as_argument(),
            resize=self.resize.as_argument(),
            focal=self.focal,
            VARIANT=self.variant._replace(sums=partial is not None, maps=num_maps),
            BLOCK=Block(CELLS_OF_A_PROGRAM, self.images_at_once),
            num_warps=warps,
            maxnreg=REGISTERS,
        )

    def launch_totals(
        self, sizes: Sizes, partial: Tensor, focal: Tensor, dice: Tensor, sums: Tensor
    ) -> None:
        """Fill `focal` and `dice [L, B, T]` and `sums [L, B, T, 3]` from `partial`."""
        launcher.launch(
            totals_kernel,
            (focal.numel(),),
            partial_ptr=partial,
            matching=self.matching,
            focal_ptr=focal,
            dice_ptr=dice,
            sums_ptr=sums,
            sizes=sizes.as_argument(),
            entries=partial.shape[3] * partial.shape[5],
            columns=partial.shape[5],
            target_pixels=float(self.target_pixels),
            BLOCK=512,
            num_warps=4,
        )

    def launch_combination(
        self, maps: Tensor, grad_losses: GradLosses, grad_logits: Tensor, sizes: Sizes, images: int
    ) -> None:
        """Fill the gradients `[L, rows, h·w]` with respect to a group's matched logits."""
        launcher.launch(
            combine_kernel,
            (cdiv(self.pixels, COMBINE_BLOCK), self.rows, images),
            maps_ptr=maps,
            matching=self.matching,
            grad_losses=grad_losses,
            grad_logits_ptr=grad_logits,
            sizes=sizes.as_argument(),
            target_pixels=float(self.target_pixels),
            pixels=self.pixels,
            BLOCK=COMBINE_BLOCK,
            IMAGES=self.images_at_once,
            num_warps=4,
        )


def _in_pairs(segments: Tensor) -> Tensor:
    """View pairs of pixels as integers of twice the size; copy only if they are misaligned."""
    pairs = torch.int32 if segments.dtype == torch.int16 else torch.int16
    # The address, too, since memory of other libraries may begin anywhere.
    if segments.storage_offset() % 2 or segments.data_ptr() % pairs.itemsize:
        segments = segments.clone()
    return segments.view(pairs)


def _axis(size: int, target_size: int, whole: bool) -> Axis:
    ratio = target_size // size
    weights = (1 / ratio, (1 - ratio % 2) / (2 * ratio)) if whole else (0.5 / target_size, 0.0)
    return Axis(size, target_size, cdiv(target_size, size), *weights)
