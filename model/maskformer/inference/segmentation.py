"""Segments with classes, from ground truth or a prediction of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskformer.data import Sample


@dataclass(frozen=True)
class Segmentation:
    """Segments with classes, as drawn over an image.

    Attributes:
        segments: `[H, W]` integer, index into `labels`; -1 is void.
        labels: `[T]` class of each segment.
        covers_all: True if pixels without a segment are void; False if their class is unknown.
    """

    segments: Tensor
    labels: Tensor
    covers_all: bool = True

    @classmethod
    def from_sample(cls, sample: Sample) -> Segmentation:
        """The ground truth, segment by segment."""
        return cls(sample.segments, sample.labels)

    @classmethod
    def from_semantic(cls, label_map: Tensor) -> Segmentation:
        """A map of classes `[H, W]`, -1 = void."""
        label_map = label_map.cpu()
        # Tables, not a sort: large photos have tens of millions of pixels. Void is the first entry.
        index = label_map.int().flatten() + 1
        present = torch.bincount(index, minlength=1)[1:] > 0
        numbers = torch.cat([torch.tensor([-1]), present.cumsum(0) - 1]).int()
        segments = numbers.index_select(0, index).view(label_map.shape)
        return cls(segments, present.nonzero().flatten())

    @classmethod
    def from_panoptic(cls, ids: Tensor, segments_info: Sequence[Mapping[str, Any]]) -> Segmentation:
        """A map of segment ids `[H, W]`, 0 = void, and their `id` and `category_id` (class)."""
        ids = ids.cpu()
        classes = {int(item["id"]): int(item["category_id"]) for item in segments_info}
        present = ids.unique()
        present = present[present > 0]
        segments = torch.searchsorted(present, ids).where(ids > 0, -1)
        labels = torch.tensor([classes[number] for number in present.tolist()], dtype=torch.int64)
        return cls(segments, labels)

    @classmethod
    def from_instances(
        cls, masks: Tensor, labels: Tensor, scores: Tensor, min_score: float = 0.0
    ) -> Segmentation:
        """Masks `[N, H, W]` bool with classes and scores `[N]`; the best lie on top, those that
        score less than `min_score` are left out.
        """
        order = scores.cpu().argsort()
        order = order[scores.cpu()[order] >= min_score]
        segments = torch.full(masks.shape[-2:], -1)
        for segment, index in enumerate(order.tolist()):
            segments[masks[index].cpu()] = segment
        return cls(segments, labels.cpu()[order], covers_all=False)
