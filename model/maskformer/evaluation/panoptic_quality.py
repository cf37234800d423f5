"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", 2019), as panopticapi defines it.

torchmetrics has a `PanopticQuality` too. It treats void predictions as if they were void ground
truth, and knows no crowds, hence this one; tests/model/evaluation/test_panoptic_quality.py shows
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
"""`[H, W]` map of segment ids, 0 = void, and per segment at least `id` and `category_id`."""


class PanopticQuality(Metric):
    """PQ, SQ and RQ. Sums are added up over processes, whose number changes no bit of them.

    Args:
        num_classes: K.
        things: classes whose objects are told apart; the rest are stuff.
        all_crowds: a prediction may lie on any crowd of its class. Without, only on the last one of
            an image, as in panopticapi, which keeps one crowd per class.
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
        """Adds an image.

        Args:
            prediction: id map and segment list of the original size, such as
                `mfkernels.panoptic_segmentation` returns.
            sample: the ground truth.

        Raises:
            ValueError: the sizes differ, a class is not in 0..K-1, or map and list do not fit each
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
        # In double: single precision would round values near one half across the limit.
        iou = overlap.double() / union.clamp(min=1)
        # At most one pair per segment exceeds one half.
        matched = (iou > 0.5) & same & ~crowd
        pairs = matched.nonzero()
        # A prediction that mostly covers void, or crowd of its own class, is neither right nor
        # wrong.
        excused = crowd if self.all_crowds else _last_of_each_class(labels, crowd)
        unknown = void + (overlap * (same & excused)).sum(1)
        wrong = ~matched.any(1) & (2 * unknown <= area)
        missed = ~matched.any(0) & ~crowd

        self.iou_sums.index_add_(1, labels[pairs[:, 1]], terms(iou[matched]))
        for state, hits in (
            (self.true_positives, labels[pairs[:, 1]]),
            (self.false_positives, classes[wrong]),
            (self.false_negatives, labels[missed]),
        ):
            state += torch.bincount(hits, minlength=self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """The scores as fractions, float64.

        Returns:
            `pq`, `sq`, `rq`: means over the classes that occur in ground truth or prediction, NaN
            if none does; the same with `_things` and `_stuff`, left out where none of them occurs;
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
    """Positions in the list instead of ids, -1 for void, and the class of each segment.

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
    """Of the crowds `[T]`, those after which no other of their class is listed."""
    order = torch.arange(len(labels), device=labels.device)
    later = (labels[:, None] == labels) & crowd & (order > order[:, None])
    return crowd & ~later.any(1)


def _overlaps(predicted: Tensor, truth: Tensor, rows: int, columns: int) -> Tensor:
    """Pixels each pair of segments shares, `[rows + 1, columns + 1]`; row and column 0 are void."""
    pairs = (predicted.long() + 1) * (columns + 1) + truth.long() + 1
    counts = torch.bincount(pairs.flatten(), minlength=(rows + 1) * (columns + 1))
    return counts.view(rows + 1, columns + 1)
