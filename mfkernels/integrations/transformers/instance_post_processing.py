"""Instance post-processing of `transformers` that holds only a few masks at full size at a time.

Only the queries whose class score reaches the threshold are processed: the score of an instance is
the product of class score and mean mask probability, which is no larger. The results are the same,
up to the rounding of resizing (see `post_processing`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mfkernels.integrations.transformers.post_processing import (
    Method,
    chunks,
    integers,
    interpolate,
    panoptic_segments,
    resize_some,
    torchvision_resize,
)


class Instances:
    """The map and the list of the instances of an image, added in chunks.

    Args:
        size: the size of the map.
        threshold: the smallest score of an instance.
        device: of the map.
    """

    def __init__(self, size: tuple[int, int], threshold: float, device: torch.device) -> None:
        self.map = torch.full(size, -1.0, device=device)
        """The index of the last instance that covers each pixel, or -1."""
        self.scores: list[float] = []
        self.labels: list[int] = []
        self._size, self._threshold = size, threshold

    def add(self, maps: Tensor, score: Tensor, label: Tensor) -> Tensor:
        """Add the mask logits `[n, h, w]` of queries; return the masks of instances, bool."""
        inside = (maps > 0).float()
        weight = inside.flatten(1)
        mean = _sums(maps.sigmoid().flatten(1) * weight) / (_sums(weight) + 1e-6)
        if inside.shape[1:] != self._size:
            inside = F.interpolate(inside[None], size=self._size, mode="nearest")[0]
        masks = inside.bool()
        # float64 holds all of them exactly; stacked, they are copied to the host at once.
        values = (score * mean, label, masks.flatten(1).any(1))
        rows = torch.stack([each.double() for each in values], 1).tolist()
        kept = []
        for row, (value, name, there) in enumerate(rows):
            if there and value >= self._threshold:
                kept.append(row)
                self.map.masked_fill_(masks[row], len(self.scores))
                self.scores.append(value)
                self.labels.append(int(name))
        return masks[kept]

    def info(self, **more: Any) -> list[dict[str, Any]]:
        """Return the list of segments, each with the same further entries."""
        return [
            {"id": index, "label_id": label, **more, "score": round(score, 6)}
            for index, (score, label) in enumerate(zip(self.scores, self.labels, strict=True))
        ]


def promising(score: Tensor, threshold: float) -> Tensor:
    """Return the indices of class scores that reach the threshold."""
    # In float64, as the original compares a Python float.
    return (score.double() >= threshold).nonzero().flatten()


def instance(first_size: tuple[int, int] | None) -> Callable[[Method], Method]:
    """Make the instances of MaskFormer (`first_size` None) or Mask2Former.

    Args:
        first_size: the size to which all mask logits are resized first, or None.
    """

    def build(original: Method) -> Method:
        @torch.no_grad()
        def post_process_instance_segmentation(
            self: Any,
            outputs: Any,
            threshold: float = 0.5,
            mask_threshold: float = 0.5,
            overlap_mask_area_threshold: float = 0.8,
            target_sizes: Sequence[tuple[int, int]] | None = None,
            return_coco_annotation: bool | None = False,
            return_binary_maps: bool | None = False,
        ) -> list[dict[str, Any]]:
            if return_coco_annotation and return_binary_maps:
                raise ValueError(
                    "return_coco_annotation and return_binary_maps can not be both set to True."
                )
            results = []
            for image, class_logits in enumerate(outputs.class_queries_logits):
                logits = outputs.masks_queries_logits[image]
                middle = first_size or tuple(logits.shape[1:])
                size = middle if target_sizes is None else integers(target_sizes[image])
                score, label, queries = _best(class_logits)
                found = Instances(size, threshold, logits.device)
                binary = []
                for rows in chunks(promising(score, threshold), middle, size):
                    maps = logits[queries[rows]]
                    if first_size is not None:
                        maps = resize_some(interpolate, maps[None], first_size, len(logits))[0]
                    masks = found.add(maps, score[rows], label[rows])
                    if return_binary_maps:
                        binary.append(masks)
                segmentation: Any = found.map.cpu()
                if return_coco_annotation:
                    segmentation = _run_lengths(original, segmentation)
                if found.scores and return_binary_maps:
                    segmentation = torch.cat(binary).float()
                segments = found.info(was_fused=False)
                results.append({"segmentation": segmentation, "segments_info": segments})
            return results

        return post_process_instance_segmentation

    return build


def oneformer_instance(original: Method) -> Method:
    """Make the instances of OneFormer, whose masks do not overlap."""

    @torch.no_grad()
    def post_process_instance_segmentation(
        self: Any,
        outputs: Any,
        task_type: str = "instance",
        is_demo: bool = True,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        return_coco_annotation: bool | None = False,
    ) -> list[dict[str, Any]]:
        results = []
        for image, class_logits in enumerate(outputs.class_queries_logits):
            logits = outputs.masks_queries_logits[image]
            size = integers(logits.shape[1:] if target_sizes is None else target_sizes[image])
            score, label, queries = _best(class_logits)
            kept = score > threshold if is_demo else torch.ones_like(score, dtype=torch.bool)
            if task_type == "panoptic":
                things = label.new_tensor(list(self.metadata["thing_ids"]))
                kept &= torch.isin(label, things)
            score, label, queries = score[kept], label[kept], queries[kept]
            if len(queries) == 0:
                empty = torch.zeros(size) - 1
                results.append({"segmentation": empty, "segments_info": []})
                continue
            if "ade20k" in self.class_info_file and not is_demo and "instance" in task_type:
                index = self.metadata["thing_ids"].index
                label = label.new_tensor([index(name) for name in label.tolist()])
            segmentation: Any
            segmentation, segments = panoptic_segments(
                logits,
                queries,
                score,
                label,
                size,
                mask_threshold=mask_threshold,
                overlap_mask_area_threshold=overlap_mask_area_threshold,
                fused=set(),
                resize=torchvision_resize,
                activate=torch.positive,  # here, transformers compares logits with the threshold
            )
            if return_coco_annotation:
                segmentation = _run_lengths(original, segmentation)
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results

    return post_process_instance_segmentation


def _sums(rows: Tensor) -> Tensor:
    """Add up each row; a row that is alone is doubled, as threads share the sum of a single one."""
    return rows.expand(max(2, len(rows)), -1).sum(1)[: len(rows)]


def _best(class_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return score, class and query of as many of the best pairs as there are queries."""
    scores = F.softmax(class_logits, dim=-1)[:, :-1]
    # The same call as in the original, which does not sort either: the order is that of the ids.
    score, pair = scores.flatten().topk(len(class_logits), sorted=False)
    classes = scores.shape[1]
    return score, pair % classes, pair.div(classes, rounding_mode="floor")


def _run_lengths(original: Method, segmentation: Tensor) -> list[list[int]]:
    """Encode a map as the model's own module does."""
    encode = sys.modules[original.__module__].convert_segmentation_to_rle
    runs: list[list[int]] = encode(segmentation)
    return runs
