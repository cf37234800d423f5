"""Training without surprises on a GPU: kernels compiled ahead, and a criterion as CUDA graphs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mfkernels.checks import usable_by_autograd
from mfkernels.criterion import (
    MaskFormerCriterion,
    loss_names,
    read_outputs,
    remembering_nothing,
)
from mfkernels.ops.mask_loss.operator import most_kept
from mfkernels.scalars import as_integer
from mfkernels.targets import SegmentTargets

_NAMES = ("class_logits", "mask_embed", "pixel_features")


def warmup(
    criterion: MaskFormerCriterion,
    outputs: Mapping[str, Any],
    size: tuple[int, int],
    *,
    most_segments: int = 100,
    overlap: bool = False,
) -> None:
    """Compile every kernel that the criterion and its backward pass can need in training.

    Which kernels those are depends on the dtypes and strides of the outputs, hardly on their sizes,
    and on the number of segments. Each takes up to a second where it is first needed; Triton keeps
    them on disk for the next process.

    Args:
        criterion: the one to train with.
        outputs: what the model gives for a batch, as the criterion takes it, on the device.
        size: `(H, W)` of the targets.
        most_segments: the most segments of an image of the data set.
        overlap: whether targets are masks, not label maps.

    Raises:
        TypeError, ValueError: as by the criterion; or `most_segments` is no integer or less than 1.
    """
    most_segments = as_integer("most_segments", most_segments, at_least=1)
    # Also in inference mode, and with outputs from there.
    with torch.inference_mode(False), torch.enable_grad(), remembering_nothing(criterion):
        given = tree_map_only(
            Tensor, lambda x: usable_by_autograd(x.detach()).requires_grad_(), dict(outputs)
        )
        logits, masks, features = read_outputs(given)[0]
        pixels = math.prod((masks if features is None else features).shape[-2:])
        kept = most_kept(len(masks), pixels)
        for counts in counts_to_try(logits.shape[-3], most_segments, kept):
            losses = criterion(given, _any_targets(logits, size, counts, overlap))
            criterion.total(losses).backward()


def counts_to_try(images: int, most_segments: int, kept: int) -> Iterator[tuple[int, ...]]:
    """Segments of the images of batches that need all kernels.

    Those of the most crowded image decide; and whether all images have more than `kept`, whose
    gradients are too large to be kept for the backward pass.
    """
    for count in range(1, most_segments + 1):
        yield (count, *[0] * (images - 1))
    full, rest = divmod(kept + 1, most_segments)
    if full + (rest > 0) <= images:
        yield (*[most_segments] * full, rest, *[0] * (images - full - 1))[:images]


def _any_targets(
    logits: Tensor, size: tuple[int, int], counts: tuple[int, ...], overlap: bool
) -> SegmentTargets:
    """Targets with so many segments, beside these class logits."""
    labels = logits.new_zeros(sum(counts), dtype=torch.int64)
    if overlap:
        masks = logits.new_zeros((sum(counts), *size), dtype=torch.bool)
        return SegmentTargets(labels, counts, masks=masks)
    label_map = logits.new_zeros((len(counts), *size), dtype=torch.int16)
    return SegmentTargets(labels, counts, label_map=label_map.fill_(-1))


class GraphedCriterion:
    """A criterion whose forward and backward pass are two CUDA graphs, one launch each.

    For training with batches of one size, where the host is slower than the GPU: small batches,
    small images, many losses. Sizes, dtypes and the most segments are fixed; numbers of segments
    are not.

    Args:
        criterion: in its final state and on its device.
        outputs: `class_logits`, `mask_embed` and `pixel_features` of a batch, as the criterion
            takes them. Later ones must be alike.
        targets: of that batch.
        max_count: the most segments of an image in later batches.
        max_total: the most segments of a later batch. Without it room is kept for `max_count` in
            each image; where batches have far fewer, a number takes less memory and time.

    Raises:
        ValueError: the outputs are not in the factored form, or are not on a GPU.
    """

    def __init__(
        self,
        criterion: MaskFormerCriterion,
        outputs: Mapping[str, Tensor],
        targets: SegmentTargets,
        *,
        max_count: int,
        max_total: int | None = None,
    ) -> None:
        if any(name not in outputs for name in _NAMES):
            raise ValueError(f"outputs must have {', '.join(_NAMES)}, got {sorted(outputs)}")
        if not targets.labels.is_cuda:
            raise ValueError(f"a CUDA graph needs outputs on a GPU, got {targets.device}")
        self.max_count = max_count
        self.max_total = max_total
        self._size = targets.size
        step = _Step(criterion, max_count, targets.masks is not None)
        predictions = tuple(outputs[name].detach().clone().requires_grad_() for name in _NAMES)
        with remembering_nothing(criterion):
            self._step: Any = torch.cuda.make_graphed_callables(
                step, (*predictions, *self._tensors(targets, None))
            )
        layers = len(outputs["class_logits"]) if outputs["class_logits"].ndim == 4 else 1
        self._names = loss_names(layers)

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        targets: SegmentTargets,
        *,
        num_masks: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted total with a gradient, and all losses by name without one.

        The total and the gradients are in the memory of the graphs, which the next call overwrites:
        call it, go back, and only then call it again.

        Args:
            outputs, targets, num_masks: as `MaskFormerCriterion` takes them. Without `num_masks` it
                is the number of segments in this process, at least 1; with several processes give
                the mean.

        Raises:
            ValueError: an image has more than `max_count` segments, all have more than `max_total`,
                or targets have another size.
        """
        predictions = (outputs[name] for name in _NAMES)
        total, losses = self._step(*predictions, *self._tensors(targets, num_masks))
        return total, dict(zip(self._names, losses.clone().unbind(), strict=True))

    def _tensors(
        self, targets: SegmentTargets, num_masks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if targets.size != self._size:
            raise ValueError(f"targets must have the size {self._size}, got {targets.size}")
        if num_masks is None:
            num_masks = targets.labels.new_full(
                (), max(targets.num_segments, 1), dtype=torch.float32
            )
        return (*targets.with_capacity(self.max_count, self.max_total), num_masks.float())


class _Step(nn.Module):
    """The criterion as a function of tensors, which is what a graph can be made of."""

    def __init__(self, criterion: MaskFormerCriterion, max_count: int, overlap: bool) -> None:
        super().__init__()
        self.criterion = criterion
        self.max_count = max_count
        self.overlap = overlap

    def forward(
        self,
        class_logits: Tensor,
        mask_embed: Tensor,
        pixel_features: Tensor,
        labels: Tensor,
        counts: Tensor,
        segments: Tensor,
        num_masks: Tensor,
    ) -> tuple[Tensor, Tensor]:
        outputs = dict(zip(_NAMES, (class_logits, mask_embed, pixel_features), strict=True))
        targets = SegmentTargets.of_capacity(
            labels, counts, segments, self.max_count, overlap=self.overlap
        )
        losses = self.criterion(outputs, targets, num_masks=num_masks)
        return self.criterion.total(losses), torch.stack(list(losses.values())).detach()
