"""Prediction of large images in overlapping tiles, whose class scores are blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskformer.inference.image_processor import ImageProcessor
from maskformer.modeling.autocast import predict
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.outputs import Size

SCORES_AT_ONCE = 2**26
"""Limit of the number of class scores of a tile in memory; with many classes, a part of the classes
is processed at a time.
"""


@dataclass(frozen=True)
class Tiles:
    """Tiles of one size that cover an image, evenly spaced.

    Args:
        side: the side of a tile in pixels of the image; images may be smaller.
        overlap: the smallest overlap of neighbouring tiles as a fraction of the side, below 1.
    """

    side: int
    overlap: float

    def size(self, image: Size) -> Size:
        """Return height and width of the tiles of an image."""
        return min(self.side, image[0]), min(self.side, image[1])

    def count(self, image: Size) -> int:
        """Return the number of tiles that cover an image."""
        return len(self.starts(image[0])) * len(self.starts(image[1]))

    def starts(self, length: int) -> list[int]:
        """Return the start of each tile in a row (or column) of `length` pixels."""
        room = length - min(self.side, length)
        step = max(int(self.side * (1 - self.overlap)), 1)
        steps = -(-room // step)
        return [round(number * room / max(steps, 1)) for number in range(steps + 1)]


class _Tile(NamedTuple):
    """The position of a tile, and a function that computes its scores `[k, H, W]` of k classes."""

    top: int
    left: int
    scores: Callable[[slice], Tensor]


@torch.inference_mode()
def semantic_map_of_tiles(
    model: SegmentationModel,
    image: Tensor,
    tiles: Tiles,
    processor: ImageProcessor,
    device: torch.device,
    *,
    resize_logits: bool,
    on_tile: Callable[[], None] = lambda: None,
) -> Tensor:
    """Find the class of each pixel by the scores of all tiles that contain it.

    Each tile is predicted as an image of its own. Where tiles overlap, their scores at the image's
    size are averaged with weights that fall smoothly towards the edges of a tile. Memory is needed
    only for the masks at stride 4 of overlapping rows of tiles, and for the scores of the few tiles
    that share a pixel.

    Args:
        model: the model on `device`, in evaluation mode.
        image: `[3, H, W]` uint8, not resized.
        tiles: the size and overlap of the tiles.
        processor: makes the network input of a tile.
        device: the device.
        resize_logits: as in `mfkernels.semantic_segmentation`.
        on_tile: called after each tile.

    Returns:
        `[H, W]` int64.
    """
    height, width = int(image.shape[-2]), int(image.shape[-1])
    size = tiles.size((height, width))
    rows, columns = tiles.starts(height), tiles.starts(width)
    labels = torch.zeros(height, width, dtype=torch.int64, device=device)
    predict_tile = partial(_predict_tile, model, processor, device, resize_logits)
    active: list[_Tile] = []  # the tiles that cover the current band of rows
    for top, bottom in _intervals(rows, size[0]):
        active = [tile for tile in active if tile.top + size[0] > top]
        for corner in product([row for row in rows if row == top], columns):
            pixels = image[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
            active.append(_Tile(*corner, predict_tile(pixels)))
            on_tile()
        band = labels[top:bottom]
        _label_band(band, top, active, columns, size, model.num_classes)
    return labels


def window(size: Size) -> Tensor:
    """Compute the weights of a tile's pixels, `[H, W]` float32: a raised cosine, nowhere zero."""
    rows, columns = (
        torch.sin(torch.pi * (torch.arange(side) + 0.5) / side).square() for side in size
    )
    return rows[:, None] * columns


def blend(scores: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Compute the mean of scores `[K, H, W]` with weights `[H, W]`. The mean of a single tensor is
    that tensor.
    """
    total = torch.stack(list(weights)).sum(0)
    parts = (part * (weight / total).to(part) for part, weight in zip(scores, weights, strict=True))
    mean = next(parts)
    for part in parts:
        mean += part
    return mean


def _intervals(starts: Sequence[int], side: int) -> Iterator[tuple[int, int]]:
    """Divide an axis at the edges of tiles into intervals, each covered by the same tiles."""
    return pairwise(sorted({*starts, *(start + side for start in starts)}))


def _predict_tile(
    model: SegmentationModel,
    processor: ImageProcessor,
    device: torch.device,
    resize_logits: bool,
    pixels: Tensor,
) -> Callable[[slice], Tensor]:
    """Run the network on a tile; return a function that computes scores from its masks, which are
    kept at stride 4.
    """
    processed = processor(pixels)
    pixel_values = processed["pixel_values"].to(device)
    outputs = predict(model, pixel_values)
    input_size = int(pixel_values.shape[-2]), int(pixel_values.shape[-1])
    view: Any = outputs.view(input_size, processed["image_sizes"][0], flipped=False)
    [size] = processed["original_sizes"]
    return partial(outputs.scores, view, size, resize_logits)


def _label_band(
    labels: Tensor,
    top: int,
    tiles: Sequence[_Tile],
    columns: Sequence[int],
    size: Size,
    num_classes: int,
) -> None:
    """Write the best classes into `labels`, a band of rows from `top` on that all tiles cover."""
    best = torch.full(labels.shape, -torch.inf, device=labels.device)
    step = max(SCORES_AT_ONCE // (size[0] * size[1]), 1)
    for start in range(0, num_classes, step):
        classes = slice(start, start + step)
        for left, scores in _blended(tiles, (top, top + len(labels)), columns, size, classes):
            here = slice(left, left + scores.shape[-1])
            highest, label = scores.max(dim=0)
            better = highest > best[:, here]
            labels[:, here] = torch.where(better, label + start, labels[:, here])
            best[:, here] = torch.maximum(highest, best[:, here])


def _blended(
    tiles: Sequence[_Tile],
    band: tuple[int, int],
    columns: Sequence[int],
    size: Size,
    classes: slice,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the blended scores `[k, rows, columns]` of some classes in a band, for one interval of
    columns at a time, with the start of the interval.
    """
    weights = window(size)
    strips: dict[int, Tensor] = {}
    for left, right in _intervals(columns, size[1]):
        covering = [i for i, tile in enumerate(tiles) if tile.left <= left < tile.left + size[1]]
        strips = {index: strip for index, strip in strips.items() if index in covering}
        scores, weights_here = [], []
        for index in covering:
            tile = tiles[index]
            rows = slice(band[0] - tile.top, band[1] - tile.top)
            if index not in strips:
                strips[index] = tile.scores(classes)[:, rows].clone()  # frees the other rows
            here = slice(left - tile.left, right - tile.left)
            scores.append(strips[index][..., here])
            weights_here.append(weights[rows, here])
        yield left, blend(scores, weights_here)
