"""Post-processing of EoMT, one image and a few maps at full size at a time.

The class scores of one image (all its crops) are computed at the size of the model's input by the
same operations as in the original. From there, a few classes or the kept queries of an image are
resized at a time, by the image processor's own methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mfkernels.integrations.transformers.binding import overridden_part
from mfkernels.integrations.transformers.instance_post_processing import Instances, promising
from mfkernels.integrations.transformers.post_processing import (
    Method,
    RunningArgmax,
    at_once,
    chunks,
    covers,
    integers,
    interpolate,
    resize_some,
    semantic_map,
)

_Offsets = Sequence[tuple[int, int, int]]


def semantic(original: Method) -> Method:
    """Make label maps without all score maps at full size, unless the scores are requested."""

    def post_process_semantic_segmentation(
        self: Any,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]],
        size: dict[str, int] | None = None,
        return_segmentation_scores: bool = False,
    ) -> Any:
        offsets: _Offsets | None = outputs.patch_offsets
        patches = _patches(offsets, len(outputs.class_queries_logits), target_sizes)
        if (
            patches is None
            or return_segmentation_scores
            or overridden_part(self, original, "merge_image_patches")
        ):
            return original(self, outputs, target_sizes, size, return_segmentation_scores)
        size = self.size if size is None else size
        maps = []
        with torch.no_grad():
            for target, rows in zip(map(integers, target_sizes), patches, strict=True):
                scores = [_class_scores(outputs, row, size) for row in rows]
                if not offsets:
                    maps.append(semantic_map(scores[0], target, interpolate))
                    continue
                of_image = [(0, *offsets[row][1:]) for row in rows]
                maps.append(_merged_map(self, scores, of_image, target, size))
        return maps

    return post_process_semantic_segmentation


def panoptic(original: Method) -> Method:
    """Make panoptic maps with few queries at full size and one copy to the host per image."""

    def post_process_panoptic_segmentation(
        self: Any,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]],
        threshold: float = 0.8,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        stuff_classes: list[int] | None = None,
        size: dict[str, int] | None = None,
    ) -> Any:
        if _differs(self, original, outputs, target_sizes):
            return original(
                self,
                outputs,
                target_sizes,
                threshold,
                mask_threshold,
                overlap_mask_area_threshold,
                stuff_classes,
                size,
            )
        results = []
        with torch.no_grad():
            scores, labels = outputs.class_queries_logits.softmax(dim=-1).max(-1)
            no_object = outputs.class_queries_logits.shape[-1] - 1
            for image, target in enumerate(map(integers, target_sizes)):
                kept = labels[image].ne(no_object) & (scores[image] > threshold)
                queries = kept.nonzero().flatten()
                if len(queries) == 0:
                    empty = torch.zeros(target) - 1
                    results.append({"segmentation": empty, "segments_info": []})
                    continue
                score, label = scores[image][queries], labels[image][queries]

                largest = RunningArgmax()
                areas = []
                for rows, maps in _masks(self, outputs, image, queries, target, size):
                    maps = maps.sigmoid()
                    inside = maps >= mask_threshold
                    areas.append(inside.sum((1, 2)))
                    largest.add(score[rows][:, None, None] * maps, inside)
                owner, inside = largest.index, largest.mark
                nobody = len(queries)
                owned = owner.flatten().bincount(minlength=nobody)
                seen = owner.where(inside, nobody).flatten().bincount(minlength=nobody + 1)
                large = covers(owned, torch.cat(areas), overlap_mask_area_threshold)
                ids, segments = _segments((seen[:-1] > 0) & large, score, label, stuff_classes)
                table = torch.tensor(ids).to(owner.device, non_blocking=True)
                segmentation = table[owner].where(inside, -1)
                results.append({"segmentation": segmentation, "segments_info": segments})
        return results

    return post_process_panoptic_segmentation


def instance(original: Method) -> Method:
    """Make instances with few queries at full size."""

    def post_process_instance_segmentation(
        self: Any,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]],
        threshold: float = 0.8,
        size: dict[str, int] | None = None,
    ) -> Any:
        if _differs(self, original, outputs, target_sizes):
            return original(self, outputs, target_sizes, threshold, size)
        results = []
        with torch.no_grad():
            for image, target in enumerate(map(integers, target_sizes)):
                probabilities = outputs.class_queries_logits[image].softmax(dim=-1)
                score, label = probabilities[..., :-1].max(-1)
                found = Instances(target, threshold, outputs.masks_queries_logits.device)
                queries = promising(score, threshold)
                for rows, maps in _masks(self, outputs, image, queries, target, size):
                    found.add(maps, score[queries[rows]], label[queries[rows]])
                results.append({"segmentation": found.map, "segments_info": found.info()})
        return results

    if not hasattr(original, "_filter_out_non_signature_kwargs"):
        return post_process_instance_segmentation
    from transformers.utils.generic import filter_out_non_signature_kwargs

    filtered: Method = filter_out_non_signature_kwargs()(post_process_instance_segmentation)
    return filtered


def _patches(
    offsets: _Offsets | None, count: int, target_sizes: Sequence[tuple[int, int]] | None
) -> list[list[int]] | None:
    """Return which of `count` model inputs belong to each image; None if any is missing."""
    if target_sizes is None:
        return None
    if not offsets:
        return [[image] for image in range(count)] if count == len(target_sizes) else None
    images = [int(image) for image, _, _ in offsets]
    if len(images) > count or not set(images) <= set(range(len(target_sizes))):
        return None
    patches: list[list[int]] = [[] for _ in target_sizes]
    for row, image in enumerate(images):
        patches[image].append(row)
    return patches if all(patches) else None


def _differs(
    processor: Any, original: Method, outputs: Any, target_sizes: Sequence[tuple[int, int]] | None
) -> bool:
    """Whether sizes are missing or a subclass restores the masks' sizes in its own way."""
    fits = target_sizes is not None and len(target_sizes) == len(outputs.class_queries_logits)
    return not fits or overridden_part(processor, original, "unpad_image") is not None


def _class_scores(outputs: Any, row: int, size: dict[str, int]) -> Tensor:
    """Compute the class scores `[K, S, S]` of one model input."""
    classes = outputs.class_queries_logits[row : row + 1].softmax(dim=-1)[..., :-1]
    masks = interpolate(outputs.masks_queries_logits[row : row + 1], _input_size(size)).sigmoid()
    return torch.einsum("bqc, bqhw -> bchw", classes, masks)[0]


def _merged_map(
    processor: Any,
    crops: list[Tensor],
    offsets: _Offsets,
    target: tuple[int, int],
    size: dict[str, int],
) -> Tensor:
    """Find the class of each pixel, `[H, W]`, from scores `[K, S, S]` of the crops of an image."""

    def merge(scores: Tensor, target: tuple[int, int]) -> Tensor:
        merged: Tensor = processor.merge_image_patches(scores, offsets, [target], size)[0]
        return merged[None]

    largest = RunningArgmax()
    classes = at_once(target, _input_size(size))
    for part in zip(*(scores.split(classes) for scores in crops), strict=True):
        largest.add(resize_some(merge, torch.stack(part), target, len(crops[0]))[0])
    return largest.index


def _masks(
    processor: Any,
    outputs: Any,
    image: int,
    queries: Tensor,
    target: tuple[int, int],
    size: dict[str, int] | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield mask logits at the target size, `[n, H, W]`, with their rows in `queries`."""
    size = processor.size if size is None else size
    full = _input_size(size)
    logits = outputs.masks_queries_logits[image]

    def resize(maps: Tensor, target: tuple[int, int]) -> Tensor:
        unpadded: Tensor = processor.unpad_image(interpolate(maps, full), [target], size)[0]
        return unpadded[None]

    rows = torch.arange(len(queries), device=queries.device)
    for part in chunks(rows, target, full):
        yield part, resize_some(resize, logits[queries[part]][None], target, len(logits))[0]


def _input_size(size: dict[str, int]) -> tuple[int, int]:
    return size["shortest_edge"], size["longest_edge"] or size["shortest_edge"]


def _segments(
    exists: Tensor, score: Tensor, label: Tensor, stuff_classes: list[int] | None
) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the segment id of each query (-1: none) and the list of segments.

    As in the original, a stuff segment that is fused into an earlier one is not listed again.
    """
    # float64 holds scores and labels exactly; stacked, they are copied to the host at once.
    rows = torch.stack((exists.double(), score.double(), label.double()), 1).tolist()
    ids: list[int] = []
    segments: list[dict[str, Any]] = []
    of_class: dict[int, int] = {}
    for there, value, name in rows:
        kind = int(name)
        if not there:
            ids.append(-1)
            continue
        if kind in of_class:
            ids.append(of_class[kind])
            continue
        ids.append(len(segments))
        if kind in (stuff_classes or ()):
            of_class[kind] = len(segments)
        segments.append({"id": len(segments), "label_id": kind, "score": round(value, 6)})
    return ids, segments
