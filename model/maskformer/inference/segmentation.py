"""The common form of ground truth and of all kinds of predictions, for drawing."""

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
        segments: `[H, W]`, the index into `labels` of each pixel; -1 for none.
        labels: `[T]`, the class of each segment.
        covers_all: True if pixels without a segment are void; False if their class is unknown, as
            for instances.
    """

    segments: Tensor
    labels: Tensor
    covers_all: bool = True

    @classmethod
    def from_sample(cls, sample: Sample) -> Segmentation:
        """Convert the ground truth of a sample."""
        return cls(sample.segments, sample.labels)

    @classmethod
    def from_semantic(cls, label_map: Tensor) -> Segmentation:
        """Convert a map of classes `[H, W]`, in which -1 is void."""
        label_map = label_map.cpu()
        # A table, whose first entry is void, is faster than sorting tens of millions of pixels.
        index = label_map.int().flatten() + 1
        present = torch.bincount(index, minlength=1)[1:] > 0
        numbers = torch.cat([torch.tensor([-1]), present.cumsum(0) - 1]).int()
        segments = numbers.index_select(0, index).view(label_map.shape)
        return cls(segments, present.nonzero().flatten())

    @classmethod
    def from_panoptic(cls, ids: Tensor, segments_info: Sequence[Mapping[str, Any]]) -> Segmentation:
        """Convert a map of segment ids `[H, W]`, in which 0 is void, and the `id` and `category_id`
        (class) of each segment.
        """
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
        """Convert masks `[N, H, W]` bool with classes and scores `[N]`. Higher scores are on top,
        and masks with a score below `min_score` are omitted.
        """
        order = scores.cpu().argsort()
        order = order[scores.cpu()[order] >= min_score]
        segments = torch.full(masks.shape[-2:], -1)
        for segment, index in enumerate(order.tolist()):
            segments[masks[index].cpu()] = segment
        return cls(segments, labels.cpu()[order], covers_all=False)
