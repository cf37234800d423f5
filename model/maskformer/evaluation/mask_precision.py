"""Mask AP of objects, as pycocotools computes it for COCO."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import mfkernels
from maskformer.data.datasets.coco_masks import encode_runs
from maskformer.data.sample import ObjectMask, Sample
from maskformer.errors import ConfigError
from maskformer.system.process_group import gather_in_turn

Annotation = dict[str, Any]
SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first figures that pycocotools sums up, in its order."""


class _Scored(NamedTuple):
    """An image: its size, and the objects that are there and that were found."""

    size: tuple[int, int]
    truth: list[Annotation]
    found: list[Annotation]


class MaskPrecision:
    """Average precision over all images and processes. Of each object only run lengths are kept.

    Args:
        num_classes: K.
        things: the classes whose objects are scored.
        run: images that a process gets in a row, where several share them.

    Raises:
        ConfigError: there are no things, or pycocotools is not installed.
    """

    def __init__(self, num_classes: int, things: Iterable[int], run: int = 1) -> None:
        self.num_classes = num_classes
        self._run = run
        self.things = sorted(things)
        if not self.things:
            raise ConfigError(
                "eval.instances measures how well objects are found, but no class of the data is a "
                "thing; set data.things (in COCO's JSON: isthing), or eval.instances: false"
            )
        try:
            importlib.import_module("pycocotools.cocoeval")
        except ImportError:
            raise ConfigError(
                "eval.instances needs pycocotools; install it: pip install 'mfkernels[coco]', or "
                "pip install pycocotools"
            ) from None
        self._images: list[_Scored] = []

    def update(self, found: mfkernels.Instances, sample: Sample) -> None:
        """Adds an image.

        Args:
            found: its instances, in the original size.
            sample: the ground truth: its `objects`, or else its segments of things.

        Raises:
            ValueError: the sizes differ.
        """
        if found.masks.shape[1:] != sample.segments.shape:
            raise ValueError(
                f"instances must have the size of the ground truth {list(sample.segments.shape)}, "
                f"got {list(found.masks.shape[1:])}"
            )
        truth = [
            {
                "category_id": segment.label,
                "segmentation": segment.runs,
                "area": segment.area,
                "iscrowd": int(segment.crowd),
            }
            for segment in (
                sample.objects if sample.objects is not None else self._segments(sample)
            )
        ]
        self._images.append(_Scored(sample.size, truth, list(_describe(found))))

    def compute(self) -> dict[str, Tensor]:
        """The scores as fractions, float64, NaN where no object of the ground truth counts.

        Returns:
            `ap`: the mean over ten thresholds of the IoU, 0.5 to 0.95, and over classes; `ap50` and
            `ap75`: at one threshold; `ap_small`, `ap_medium` and `ap_large`: of objects below 32²,
            up to 96², and above, in pixels; `ap_per_class` `[K]`.
        """
        from pycocotools.cocoeval import COCOeval

        images = gather_in_turn(self._images, self._run)
        with redirect_stdout(io.StringIO()):
            truth = self._index(images, [image.truth for image in images])
            found = self._index(images, [image.found for image in images])
            evaluator = COCOeval(truth, found, "segm")
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        per_class = np.full(self.num_classes, np.nan)
        # Thresholds, recalls, classes, sizes (all) and numbers of detections (the most).
        precision = evaluator.eval["precision"].transpose(2, 0, 1, 3, 4)
        for k, values in zip(self.things, precision, strict=True):
            valid = values[..., 0, -1]
            per_class[k] = valid[valid > -1].mean() if (valid > -1).any() else np.nan
        scores = {
            name: torch.tensor(value if value > -1 else np.nan, dtype=torch.double)
            for name, value in zip(SUMMARY, evaluator.stats.tolist(), strict=False)
        }
        return scores | {"ap_per_class": torch.from_numpy(per_class)}

    def _segments(self, sample: Sample) -> Iterator[ObjectMask]:
        for k, label in enumerate(sample.labels.tolist()):
            if label in self.things:
                mask = (sample.segments == k).numpy()
                yield ObjectMask(label, encode_runs(mask), float(mask.sum()), bool(sample.crowd[k]))

    def _index(self, images: list[_Scored], objects: list[list[Annotation]]) -> Any:
        """The form in which pycocotools takes both truth and detections."""
        from pycocotools.coco import COCO

        annotations = [
            {**annotation, "image_id": image}
            for image, listed in enumerate(objects)
            for annotation in listed
        ]
        coco = COCO()
        coco.dataset = {
            "images": [
                {"id": k, "height": image.size[0], "width": image.size[1]}
                for k, image in enumerate(images)
            ],
            # Number 0 would mean "not matched".
            "annotations": [{**annotation, "id": k} for k, annotation in enumerate(annotations, 1)],
            "categories": [{"id": label} for label in self.things],
        }
        coco.createIndex()
        return coco


def _describe(found: mfkernels.Instances) -> Iterator[Annotation]:
    for mask, label, score in zip(
        found.masks, found.labels.tolist(), found.scores.tolist(), strict=True
    ):
        pixels = mask.cpu().numpy()
        if area := int(pixels.sum()):
            yield {
                "category_id": label,
                "score": score,
                "segmentation": encode_runs(pixels),
                "area": area,
                "iscrowd": 0,
            }
