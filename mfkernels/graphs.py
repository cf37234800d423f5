"""Compile kernels ahead of training, and run a criterion as CUDA graphs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mfkernels.backend import use_backend
from mfkernels.checks import usable_by_autograd
from mfkernels.criterion import (
    MaskFormerCriterion,
    loss_names,
    read_outputs,
    remembering_nothing,
)
from mfkernels.ops.common.arguments import MOST_SIDE, as_size
from mfkernels.ops.mask_loss.operator import most_kept
from mfkernels.scalars import as_integer
from mfkernels.targets import SegmentTargets

_NAMES = ("class_logits", "mask_embed", "pixel_features")
_TARGETS = ("labels", "counts", "segments", "num_masks")


def warmup(
    criterion: MaskFormerCriterion,
    outputs: Mapping[str, Any],
    size: tuple[int, int],
    *,
    most_segments: int = 100,
    overlap: bool = False,
) -> None:
    """Compile every kernel that the criterion and its backward pass may need in training.

    Otherwise each kernel is compiled when it is first needed, which takes up to a second. Which
    kernels are needed depends on the number of segments and on the dtypes and strides of the
    outputs, but hardly on their sizes. Triton keeps compiled kernels on disk for the next process.

    Args:
        criterion: the criterion to train with.
        outputs: the model's outputs for one batch, in any form that `MaskFormerCriterion.forward`
            takes, on the device.
        size: `(H, W)` of the targets in pixels.
        most_segments: the largest number of segments per image in the data set.
        overlap: True if the targets are masks, False if they are label maps.

    Raises:
        TypeError, ValueError: as `MaskFormerCriterion.forward`; `most_segments` is no integer or
            less than 1; or `size` is no pair of positive integers.
    """
    most_segments = as_integer("most_segments", most_segments, at_least=1)
    pair = as_size(size)
    if pair is None:
        raise ValueError(f"size must be two integers in 1..{MOST_SIDE} (H, W), got {size!r}")
    # The caller may be in inference mode, or pass outputs that were made in it.
    with torch.inference_mode(False), torch.enable_grad(), remembering_nothing(criterion):
        given = tree_map_only(
            Tensor, lambda x: usable_by_autograd(x.detach()).requires_grad_(), dict(outputs)
        )
        logits, masks, features = read_outputs(given)[0]
        pixels = math.prod((masks if features is None else features).shape[-2:])
        kept = most_kept(len(masks), pixels)
        for counts in counts_to_try(logits.shape[-3], most_segments, kept):
            losses = criterion(given, _any_targets(logits, pair, counts, overlap))
            criterion.total(losses).backward()


def counts_to_try(images: int, most_segments: int, kept: int) -> Iterator[tuple[int, ...]]:
    """Yield the segment counts of batches that together need every compiled kernel.

    Which kernel is compiled depends on the largest count of an image, and on whether the batch has
    more than `kept` segments: with more, the gradients with respect to the mask logits are too
    large to be kept for the backward pass, which then recomputes them.
    """
    for count in range(1, most_segments + 1):
        yield (count, *[0] * (images - 1))
    full, rest = divmod(kept + 1, most_segments)
    if full + (rest > 0) <= images:
        yield (*[most_segments] * full, rest, *[0] * (images - full - 1))[:images]


def _any_targets(
    logits: Tensor, size: tuple[int, int], counts: tuple[int, ...], overlap: bool
) -> SegmentTargets:
    """Make targets with these numbers of segments, on the device of the class logits."""
    labels = logits.new_zeros(sum(counts), dtype=torch.int64)
    if overlap:
        masks = logits.new_zeros((sum(counts), *size), dtype=torch.bool)
        return SegmentTargets(labels, counts, masks=masks)
    label_map = logits.new_zeros((len(counts), *size), dtype=torch.int16)
    return SegmentTargets(labels, counts, label_map=label_map.fill_(-1))


class GraphedCriterion:
    """Run a criterion as two CUDA graphs, one for the forward and one for the backward pass.

    Each graph is a single launch. Use it for training with batches of one size if the host is
    slower than the GPU: small batches, small images, many losses. Sizes, dtypes and the largest
    number of segments are fixed; the numbers of segments may vary.

    Args:
        criterion: the criterion in its final state, on the device.
        outputs: `class_logits [L, B, Q, K+1]`, `mask_embed [L, B, Q, C]` and
            `pixel_features [B, C, h, w]` of one batch (or of one layer without L). Later outputs
            must have the same shapes and dtypes.
        targets: the targets of that batch, on the GPU.
        max_count: the largest number of segments per image in later batches.
        max_total: the largest number of segments per batch. None: `B · max_count`. If batches
            have far fewer segments, a smaller number saves memory and time.

    Raises:
        ValueError: the outputs are not in the factored form, or the targets are not on a GPU.
        BackendError: a native kernel is missing or does not support the outputs.
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
            raise ValueError(f"a CUDA graph needs targets on a GPU, got {targets.device}")
        self.max_count = max_count
        self.max_total = max_total
        self._size = targets.size
        step = _Step(criterion, max_count, targets.masks is not None)
        # Copies, because each call overwrites the memory of these tensors with its own.
        predictions = [outputs[name].detach().clone().requires_grad_() for name in _NAMES]
        segments = [tensor.clone() for tensor in self._tensors(targets, None)]
        with (
            remembering_nothing(criterion),
            use_backend("native"),  # plain PyTorch does not know the true numbers of segments
            torch.cuda.device_of(targets.labels),  # only the current device is captured
        ):
            self._step: Any = torch.cuda.make_graphed_callables(step, (*predictions, *segments))
        self._forms = [(list(tensor.shape), tensor.dtype) for tensor in (*predictions, *segments)]
        layers = len(outputs["class_logits"]) if outputs["class_logits"].ndim == 4 else 1
        self._names = loss_names(layers)

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        targets: SegmentTargets,
        *,
        num_masks: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted total and the losses.

        The total and the gradients are in the memory of the graphs, which the next call
        overwrites: run the backward pass before the next call.

        Args:
            outputs: as in the constructor.
            targets: targets of the same size.
            num_masks: the divisor of the mask losses, 0-dim. None: the number of segments of this
                process, at least 1; with several processes, pass the mean over the processes.

        Returns:
            The weighted total, 0-dim and differentiable, and all losses by name, 0-dim and
            detached; for the names, see `MaskFormerCriterion.forward`.

        Raises:
            ValueError: an image has more than `max_count` segments, the batch has more than
                `max_total`, or a tensor has another shape or dtype than in the constructor.
        """
        given = (*(outputs[name] for name in _NAMES), *self._tensors(targets, num_masks))
        # The graph's copy would convert and broadcast: of one image to all of them, for example.
        for name, tensor, form in zip((*_NAMES, *_TARGETS), given, self._forms, strict=True):
            if (list(tensor.shape), tensor.dtype) != form:
                raise ValueError(
                    f"{name} must be {form[0]} in {form[1]}, as in the graph, got "
                    f"{list(tensor.shape)} in {tensor.dtype}"
                )
        total, losses = self._step(*given)
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
    """The criterion as a function of tensors only, as `make_graphed_callables` requires."""

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
