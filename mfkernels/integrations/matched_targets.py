"""The targets of the losses of matched queries, prepared once for all losses of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mfkernels.integrations.matching import Pair, as_pairs
from mfkernels.targets import SegmentTargets, holds_values


@dataclass(frozen=True)
class GroundTruth:
    """The segments of a batch, of which those of class K, "no object", have no class loss."""

    segments: SegmentTargets
    classes: SegmentTargets
    """The same segments with labels in 0..K−1: class K is replaced by 0."""
    is_class: Tensor | None
    """`[B, T]` bool: whether a segment has a class other than "no object"; None: all have."""

    @classmethod
    def of(cls, segments: SegmentTargets, num_classes: int) -> GroundTruth:
        is_class = segments.labels != num_classes
        if holds_values(segments.labels) and bool(is_class.all()):
            return cls(segments, segments, None)
        labels = segments.labels.where(is_class, 0)
        classes = SegmentTargets(
            labels, segments.counts, label_map=segments.label_map, masks=segments.masks
        )
        return cls(segments, classes, segments.padded_labels() != num_classes)


class Matches(list[Pair]):
    """The pairs of a layer, image by image, with their `assignment [B, T]` and targets."""

    def __init__(self, pairs: Sequence[Pair], assignment: Tensor, truth: GroundTruth) -> None:
        super().__init__(pairs)
        self.assignment = assignment
        self.truth = truth

    @property
    def class_assignment(self) -> Tensor:
        """The assignment `[B, T]`, with −1 for segments of class "no object"."""
        is_class = self.truth.is_class
        return self.assignment if is_class is None else self.assignment.where(is_class, -1)

    @classmethod
    def of(
        cls,
        indices: Sequence[tuple[Any, Any]],
        masks: Sequence[Tensor],
        labels: Sequence[Tensor],
        num_classes: int,
    ) -> Matches:
        """Make matches of any pairs; each pair becomes a segment, so one may be matched twice.

        Raises:
            TypeError: an index is not an integer.
            ValueError: a query of an image is in more than one pair.
        """
        pairs = as_pairs(indices)
        for image, (query, _) in enumerate(pairs):
            if len(query.unique()) < len(query):
                raise ValueError(
                    "a query can be matched to one segment only; the queries of image "
                    f"{image} are {query.tolist()}"
                )
        segments = SegmentTargets.from_masks(
            [
                mask[segment.to(mask.device)]
                for mask, (_, segment) in zip(masks, pairs, strict=True)
            ],
            [x.long()[segment.to(x.device)] for x, (_, segment) in zip(labels, pairs, strict=True)],
        )
        queries = [query.to(segments.device) for query, _ in pairs]
        own = [(query, torch.arange(len(query), device=query.device)) for query in queries]
        assignment = pad_sequence(queries, batch_first=True, padding_value=-1)
        return cls(own, assignment, GroundTruth.of(segments, num_classes))
