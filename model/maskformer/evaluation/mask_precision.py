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
from maskformer.data.datasets.coco_masks import encode_mask
from maskformer.data.sample import ObjectMask, Sample
from maskformer.errors import ConfigError
from maskformer.system.process_group import gather_in_order

Annotation = dict[str, Any]
SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first values in the summary of pycocotools, in its order."""


class _Scored(NamedTuple):
    """An image: its size, the objects of the ground truth and the predicted objects."""

    size: tuple[int, int]
    truth: list[Annotation]
    found: list[Annotation]


class MaskPrecision:
    """Average precision over all images and processes. Masks are stored as run lengths.

    Args:
        num_classes: K.
        things: the thing classes, whose objects are scored.
        run: the number of consecutive images that a process gets (the batch size), by which the
            images of all processes are put back into their order.

    Raises:
        ConfigError: there are no things, or pycocotools is not installed.
    """

    def __init__(self, num_classes: int, things: Iterable[int], run: int = 1) -> None:
        self.num_classes = num_classes
        self._run = run
        self.things = sorted(things)
        if not self.things:
            raise ConfigError(
                "eval.instances scores objects, but no class of the data is a thing; set "
                "data.things (in COCO's JSON: isthing), or eval.instances: false"
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
        """Add an image.

        Args:
            found: the predicted instances, at the original size.
            sample: the ground truth: its `objects`, or if it has none, its segments of things.

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
        """Compute the scores as fractions, float64; NaN if the ground truth has no such objects.

        Returns:
            `ap`: the mean over ten IoU thresholds, 0.5 to 0.95, and over classes; `ap50` and
            `ap75`: at one threshold; `ap_small`, `ap_medium` and `ap_large`: for objects with an
            area of up to 32², up to 96², and above, in pixels; `ap_per_class` `[K]`.
        """
        from pycocotools.cocoeval import COCOeval

        images = gather_in_order(self._images, self._run)
        with redirect_stdout(io.StringIO()):
            truth = self._index(images, [image.truth for image in images])
            found = self._index(images, [image.found for image in images])
            evaluator = COCOeval(truth, found, "segm")
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        per_class = np.full(self.num_classes, np.nan)
        # IoU thresholds, recalls, classes, area ranges (0: all), detection limits (-1: highest).
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
                yield ObjectMask(label, encode_mask(mask), float(mask.sum()), bool(sample.crowd[k]))

    def _index(self, images: list[_Scored], objects: list[list[Annotation]]) -> Any:
        """Convert ground truth or detections to the form that pycocotools expects."""
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
            # Ids start at 1, because pycocotools uses 0 for "not matched".
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
                "segmentation": encode_mask(pixels),
                "area": area,
                "iscrowd": 0,
            }
