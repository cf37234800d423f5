"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", 2019), as panopticapi defines it.

torchmetrics also has a `PanopticQuality`, but it treats void predictions as if they were void
ground truth, and does not support crowds. tests/model/evaluation/test_panoptic_quality.py shows
where the two agree and where they differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from maskformer.data.sample import Sample
from maskformer.evaluation.exact_sums import no_terms, terms, totals

Segments = tuple[Tensor, Sequence[Mapping[str, Any]]]
"""A map of segment ids `[H, W]`, 0 for void, and a dict per segment with `id` and `category_id`."""


class PanopticQuality(Metric):
    """PQ, SQ and RQ. Sums are exact, so the results do not depend on the number of processes.

    Args:
        num_classes: K.
        things: the thing classes; the others are stuff.
        all_crowds: ignore an unmatched prediction that mostly covers any crowds of its class. If
            False, only the last crowd per class of an image counts, as in panopticapi.
    """

    full_state_update = False
    higher_is_better = True

    iou_sums: Tensor
    true_positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor

    def __init__(
        self,
        num_classes: int,
        things: Iterable[int],
        *,
        all_crowds: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.all_crowds = all_crowds
        self.num_classes = num_classes
        self.things = frozenset(things)
        self.add_state("iou_sums", no_terms(num_classes), dist_reduce_fx="sum")
        for name in ("true_positives", "false_positives", "false_negatives"):
            zeros = torch.zeros(num_classes, dtype=torch.int64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, prediction: Segments, sample: Sample) -> None:
        """Add an image.

        Args:
            prediction: the map of segment ids at the original size and the list of segments, as
                returned by `mfkernels.panoptic_segmentation`.
            sample: the ground truth.

        Raises:
            ValueError: the sizes differ, a class is not in 0..K-1, or map and list contradict each
                other.
        """
        device = self.iou_sums.device
        predicted, classes = _number_segments(*prediction)
        predicted, classes = predicted.to(device), classes.to(device)
        truth, labels = sample.segments.to(device), sample.labels.to(device)
        crowd = sample.crowd.to(device)
        if predicted.shape != truth.shape:
            raise ValueError(
                f"prediction must have the size of the ground truth {list(truth.shape)}, "
                f"got {list(predicted.shape)}"
            )
        for name, values in (("prediction", classes), ("ground truth", labels)):
            if len(values) and not (
                int(values.min()) >= 0 and int(values.max()) < self.num_classes
            ):
                raise ValueError(
                    f"{name} must hold classes in 0..{self.num_classes - 1}, got {values.tolist()}"
                )
        overlap = _overlaps(predicted, truth, len(classes), len(labels))
        void, overlap = overlap[1:, 0], overlap[:, 1:]
        true_area, overlap = overlap.sum(0), overlap[1:]
        area = overlap.sum(1) + void
        same = classes[:, None] == labels[None, :]

        union = area[:, None] + true_area[None, :] - overlap - void[:, None]
        # Use double precision: single precision could round an IoU near one half across the limit.
        iou = overlap.double() / union.clamp(min=1)
        # Each segment has at most one partner with an IoU above one half.
        matched = (iou > 0.5) & same & ~crowd
        pairs = matched.nonzero()
        # A prediction that mostly covers void or crowds of its own class is ignored.
        ignored = crowd if self.all_crowds else _last_of_each_class(labels, crowd)
        ignored_area = void + (overlap * (same & ignored)).sum(1)
        wrong = ~matched.any(1) & (2 * ignored_area <= area)
        missed = ~matched.any(0) & ~crowd

        self.iou_sums.index_add_(1, labels[pairs[:, 1]], terms(iou[matched]))
        for state, hits in (
            (self.true_positives, labels[pairs[:, 1]]),
            (self.false_positives, classes[wrong]),
            (self.false_negatives, labels[missed]),
        ):
            state += torch.bincount(hits, minlength=self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """Compute the scores as fractions, float64.

        Returns:
            `pq`, `sq`, `rq`: means over the classes that occur in ground truth or prediction, NaN
            if there are none; the same with `_things` and `_stuff`, unless no such class occurs;
            `pq_per_class`, `sq_per_class`, `rq_per_class` `[K]`, NaN for classes that do not occur.
        """
        hits, iou = self.true_positives.double(), totals(self.iou_sums)
        weight = hits + 0.5 * self.false_positives + 0.5 * self.false_negatives
        counted = weight > 0
        per_class = {
            "pq": torch.where(counted, iou / weight, torch.nan),
            "sq": torch.where(counted, iou / hits.clamp(min=1), torch.nan),
            "rq": torch.where(counted, hits / weight, torch.nan),
        }
        thing = torch.tensor([k in self.things for k in range(self.num_classes)]).to(counted.device)
        groups = {"": counted, "_things": counted & thing, "_stuff": counted & ~thing}
        scores = {
            name + suffix: values[group].mean()
            for suffix, group in groups.items()
            for name, values in per_class.items()
            if not suffix or bool(group.any())
        }
        return scores | {f"{name}_per_class": values for name, values in per_class.items()}


def _number_segments(ids: Tensor, segments: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Replace ids by indices into the list, -1 for void; also return the class of each segment.

    Raises:
        ValueError: an id is listed twice, listed without a pixel, or not listed.
    """
    listed = torch.tensor([int(s["id"]) for s in segments], dtype=torch.int64, device=ids.device)
    classes = torch.tensor([int(s["category_id"]) for s in segments], dtype=torch.int64)
    present = ids.unique().tolist()
    expected = sorted(listed.tolist())
    if present[:1] == [0]:
        present = present[1:]
    if present != expected:
        raise ValueError(
            f"prediction lists the segment ids {expected}, but its map holds {present} (0 is void)"
        )
    table, order = listed.sort()
    position = torch.searchsorted(torch.cat([table.new_zeros(1), table]), ids.long())
    return torch.cat([order.new_full((1,), -1), order])[position], classes


def _last_of_each_class(labels: Tensor, crowd: Tensor) -> Tensor:
    """Return which of the crowds `[T]` is the last one of its class."""
    order = torch.arange(len(labels), device=labels.device)
    later = (labels[:, None] == labels) & crowd & (order > order[:, None])
    return crowd & ~later.any(1)


def _overlaps(predicted: Tensor, truth: Tensor, rows: int, columns: int) -> Tensor:
    """Count the pixels that each pair of segments shares, `[rows + 1, columns + 1]`; row 0 and
    column 0 are void.
    """
    pairs = (predicted.long() + 1) * (columns + 1) + truth.long() + 1
    counts = torch.bincount(pairs.flatten(), minlength=(rows + 1) * (columns + 1))
    return counts.view(rows + 1, columns + 1)
