"""Post-processing of `transformers` that holds only a few scores at full size at a time.

Semantic maps: the original multiplies at mask resolution and then resizes the K score maps. The
official code (`mfkernels.semantic_segmentation`) computes something else, so its kernels cannot be
used. Here, a few classes at a time are resized in the same way, and a running maximum is kept; the
maps are bitwise the same. Panoptic maps are computed likewise from chunks of the kept queries; they
are the same up to the rounding of a sigmoid. `eomt_post_processing` and `instance_post_processing`
do the same for EoMT and for instances. One exception: on one CPU thread, PyTorch's rounding of maps
with at most 128 rows and columns in all depends on their number, so that near ties may break
otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Method = Callable[..., Any]
Resize = Callable[[Tensor, tuple[int, int]], Tensor]
"""`[1, N, h, w]` to `[1, N, H, W]`."""

PIXELS_AT_ONCE = 1 << 21
"""About this many resized scores are held in memory at a time."""

_logger = logging.getLogger(__name__)


def integers(size: Any) -> tuple[int, int]:
    """Convert height and width, which may be tensors, to integers."""
    height, width = map(int, size)
    return height, width


def interpolate(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def torchvision_resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    from torchvision.transforms.v2 import functional

    bilinear = functional.InterpolationMode.BILINEAR
    return functional.resize(maps, size=list(size), interpolation=bilinear)


def resize_some(resize: Resize, maps: Tensor, size: tuple[int, int], total: int) -> Tensor:
    """Resize `maps [1, n, h, w]`, which are some of `total` maps, as if with all of them.

    On one CPU thread, PyTorch resizes three maps, like the colours of an image, by another kernel
    with another rounding.
    """
    count = maps.shape[1]
    if (count == 3) == (total == 3):
        return resize(maps, size)
    filled = [min(index, count - 1) for index in range(3 if total == 3 else 4)]
    return resize(maps[:, filled], size)[:, :count]


def semantic(resize: Resize) -> Callable[[Method], Method]:
    """Make label maps without K score maps at full size, unless the scores are requested."""

    def build(original: Method) -> Method:
        def post_process_semantic_segmentation(
            self: Any,
            outputs: Any,
            target_sizes: Sequence[tuple[int, int]] | None = None,
            return_segmentation_scores: bool = False,
        ) -> Any:
            fits = target_sizes is not None and len(target_sizes) == len(
                outputs.class_queries_logits
            )
            if target_sizes is None or not fits or return_segmentation_scores:
                return original(self, outputs, target_sizes, return_segmentation_scores)
            with torch.no_grad():
                small = original(self, outputs, None, True)
                return [
                    semantic_map(item.segmentation_scores, integers(size), resize)
                    for item, size in zip(small, target_sizes, strict=True)
                ]

        return post_process_semantic_segmentation

    return build


def panoptic(resize: Resize, first_size: tuple[int, int] | None) -> Callable[[Method], Method]:
    """Make panoptic maps with few queries at full size and one copy to the host per image.

    Args:
        resize: resizes from mask resolution (or `first_size`) to the target size.
        first_size: the size to which all mask logits are resized first, or None.
    """

    def build(original: Method) -> Method:
        @torch.no_grad()
        def post_process_panoptic_segmentation(
            self: Any,
            outputs: Any,
            threshold: float = 0.5,
            mask_threshold: float = 0.5,
            overlap_mask_area_threshold: float = 0.8,
            label_ids_to_fuse: set[int] | None = None,
            target_sizes: Sequence[tuple[int, int]] | None = None,
        ) -> list[dict[str, Any]]:
            if label_ids_to_fuse is None:
                _logger.warning("label_ids_to_fuse is not set: no segments will be fused")
                label_ids_to_fuse = set()
            scores, labels = F.softmax(outputs.class_queries_logits, dim=-1).max(-1)
            no_object = outputs.class_queries_logits.shape[-1] - 1
            results = []
            for image, logits in enumerate(outputs.masks_queries_logits):
                kept = labels[image].ne(no_object) & (scores[image] > threshold)
                queries = kept.nonzero().flatten()
                target = None if target_sizes is None else target_sizes[image]
                size = integers(first_size or logits.shape[1:] if target is None else target)
                if len(queries) == 0:
                    empty = torch.zeros(size) - 1
                    results.append({"segmentation": empty, "segments_info": []})
                    continue
                score, label = scores[image][queries], labels[image][queries]
                segmentation, segments = panoptic_segments(
                    logits,
                    queries,
                    score,
                    label,
                    size,
                    mask_threshold=mask_threshold,
                    overlap_mask_area_threshold=overlap_mask_area_threshold,
                    fused=label_ids_to_fuse,
                    first_size=first_size,
                    resize=resize,
                )
                results.append({"segmentation": segmentation, "segments_info": segments})
            return results

        return post_process_panoptic_segmentation

    return build


class RunningArgmax:
    """The index and value of the largest of maps `[N, H, W]` at each pixel, added in chunks."""

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.index = torch.empty(0)
        self.mark = torch.empty(0)
        """The mark of the largest at each pixel, if the maps were added with marks."""
        self._count = 0

    def add(self, maps: Tensor, marks: Tensor | None = None) -> None:
        value, index = maps.max(0)
        mark = self.mark if marks is None else marks.gather(0, index[None])[0]
        if self.value is None:
            self.value, self.index, self.mark = value, index, mark
        else:
            index += self._count
            # As in argmax, the first NaN wins.
            better = (value > self.value) | (value.isnan() & ~self.value.isnan())
            torch.where(better, value, self.value, out=self.value)
            torch.where(better, index, self.index, out=self.index)
            if marks is not None:
                torch.where(better, mark, self.mark, out=self.mark)
        self._count += len(maps)


def semantic_map(scores: Tensor, size: tuple[int, int], resize: Resize) -> Tensor:
    """Find the class of each pixel, `[H, W]`, from scores `[K, h, w]`."""
    largest = RunningArgmax()
    for chunk in scores.split(at_once(size)):
        largest.add(resize_some(resize, chunk[None], size, len(scores))[0])
    return largest.index


def panoptic_segments(
    logits: Tensor,
    queries: Tensor,
    score: Tensor,
    label: Tensor,
    size: tuple[int, int],
    *,
    mask_threshold: float,
    overlap_mask_area_threshold: float,
    fused: set[int],
    resize: Resize,
    first_size: tuple[int, int] | None = None,
    activate: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return the map of segment ids, `[H, W]`, of `queries [n]`, and the list of segments."""
    owner, area = _owners(
        logits, queries, score, mask_threshold, size, first_size, resize, activate
    )
    owned = owner.flatten().bincount(minlength=len(score))
    exists = (owned > 0) & covers(owned, area, overlap_mask_area_threshold)
    ids, segments = _segments(exists, score, label, fused)
    table = torch.tensor(ids, dtype=torch.int32).to(owner.device, non_blocking=True)
    return table[owner], segments


def covers(owned: Tensor, area: Tensor, threshold: float) -> Tensor:
    """Whether each query owns a large enough part of its mask."""
    # A float32 quotient, compared with the threshold in float64, as in the original.
    return (area > 0) & ((owned / area).double() > threshold)


def _owners(
    logits: Tensor,
    queries: Tensor,
    score: Tensor,
    mask_threshold: float,
    size: tuple[int, int],
    first_size: tuple[int, int] | None,
    resize: Resize,
    activate: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Find each pixel's owner among `queries [n]`, `[H, W]`, and the mask area of each, `[n]`."""
    largest = RunningArgmax()
    areas = []
    for chunk, weight in zip(queries.split(at_once(size)), score.split(at_once(size)), strict=True):
        maps = logits[chunk]
        if first_size is not None:
            maps = resize_some(interpolate, maps[None], first_size, len(logits))[0]
        maps = activate(maps)
        if maps.shape[1:] != size:
            maps = resize_some(resize, maps[None], size, len(queries))[0]
        maps = maps * weight[:, None, None]
        areas.append((maps >= mask_threshold).sum((1, 2)))
        largest.add(maps)
    return largest.index, torch.cat(areas)


def at_once(*sizes: tuple[int, int]) -> int:
    """Return how many maps are held at a time that pass through these sizes."""
    return max(1, PIXELS_AT_ONCE // max(1, *(height * width for height, width in sizes)))


def chunks(indices: Tensor, *sizes: tuple[int, int]) -> tuple[Tensor, ...]:
    """Split indices of maps that pass through these sizes; without indices, there is no chunk."""
    parts: tuple[Tensor, ...] = indices.split(at_once(*sizes))
    return parts if len(indices) else ()


def _segments(
    exists: Tensor, score: Tensor, label: Tensor, fused: set[int]
) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the segment id of each query (0: none) and the list of segments.

    As in the original, a segment that is fused into an earlier one is listed again, and the
    numbering continues from the id of that earlier one.
    """
    # float64 holds scores and labels exactly; stacked, they are copied to the host at once.
    rows = torch.stack((exists.double(), score.double(), label.double()), 1).tolist()
    ids: list[int] = []
    segments: list[dict[str, Any]] = []
    of_class: dict[int, int] = {}
    current = 0
    for there, value, name in rows:
        if not there:
            ids.append(0)
            continue
        kind = int(name)
        current = of_class.get(kind, current + 1)
        ids.append(current)
        segments.append(
            {
                "id": current,
                "label_id": kind,
                "was_fused": kind in fused,
                "score": round(value, 6),
            }
        )
        if kind in fused:
            of_class[kind] = current
    return ids, segments
