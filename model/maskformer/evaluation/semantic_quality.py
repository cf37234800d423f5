"""Mean intersection over union (mIoU) and related metrics of semantic segmentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SemanticQuality(Metric):
    """Metrics of label maps, accumulated over the pixels of all images.

    Void ground truth is ignored; predicting void for a labelled pixel is an error. Classes without
    ground truth are ignored in the means, but predicting them lowers the score of the true class.
    Counts are summed over processes.

    Args:
        num_classes: K.
    """

    full_state_update = False
    higher_is_better = True

    confusion: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        # Rows are the ground truth. The additional class stands for void.
        zeros = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add images.

        Args:
            prediction: classes, integer, any shape; -1 is void.
            target: classes, same shape; -1 is void.

        Raises:
            ValueError: the shapes differ or a class is not in -1..K-1.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction must have the shape of target {list(target.shape)}, "
                f"got {list(prediction.shape)}"
            )
        for name, values in (("prediction", prediction), ("target", target)):
            low, high = (int(v) for v in values.aminmax()) if values.numel() else (0, 0)
            if low < -1 or high >= self.num_classes:
                raise ValueError(
                    f"{name} must hold classes in -1..{self.num_classes - 1}, got {low}..{high}"
                )
        device = self.confusion.device
        prediction, target = prediction.to(device).int(), target.to(device).int()
        side = self.num_classes + 1
        # Index 0 is void in both. In the result, void is last, and its row is ignored.
        pairs = (target + 1).mul_(side).add_(prediction).add_(1)
        counts = torch.bincount(pairs.flatten(), minlength=side * side).view(side, side)[1:]
        self.confusion[:-1] += counts.roll(-1, 1)

    def compute(self) -> dict[str, Tensor]:
        """Compute the scores as fractions, float64.

        Returns:
            `miou`: the mean IoU over the classes with ground truth; `fwiou`: the mean IoU weighted
            by the number of their pixels; `macc`: the mean recall of these classes; `pacc`: the
            fraction of correct pixels; `iou_per_class` and `accuracy_per_class` (recall) `[K]`, NaN
            for classes without ground truth. All are NaN if no pixel is labelled. Also `confusion`,
            int64 `[K + 1, K + 1]`: the number of pixels by true and by predicted class; index K is
            void.
        """
        counts = self.confusion.double()
        right = counts.diagonal()[:-1]
        truth, predicted = counts.sum(1)[:-1], counts.sum(0)[:-1]
        present = truth > 0
        iou = torch.where(present, right / (truth + predicted - right), torch.nan)
        total = truth.sum()
        return {
            "miou": iou[present].mean(),
            "fwiou": (iou * truth)[present].sum() / total,
            "macc": (right / truth)[present].mean(),
            "pacc": right.sum() / total,
            "iou_per_class": iou,
            "accuracy_per_class": right / truth,
            "confusion": self.confusion,
        }
