"""From class logits and the factors of masks to label maps: the official computation and ours.

    python benchmarks/bench_segmentation.py                    all cases of this machine
    python benchmarks/bench_segmentation.py --reuse-pages      with a heap that keeps its pages
    pytest benchmarks/bench_segmentation.py                    ours alone under pytest-benchmark

A to D: semantic. E: panoptic, 20 of 100 queries kept. F: scores averaged over three scales, each
plain and mirrored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from harness.command_line import EAGER, FusedRow, main, run_case
from harness.inputs import Floor
from torch import Tensor
from torch.nn import functional as F

from mfkernels import SegmentationView, average_semantic_segmentation, panoptic_segmentation
from mfkernels.ops.segmentation.reference import panoptic_map

Size = tuple[int, int]
QUERIES, CHANNELS = 100, 256


@dataclass(frozen=True)
class Sizes:
    """`inputs`: of each view the padded input, four times the mask logits, and the image in it."""

    classes: int
    size: Size
    inputs: tuple[tuple[Size, Size], ...]
    kept: int | None = None
    """Panoptic: queries above the threshold. None: semantic."""


ADE = ((512, 704), (512, 683))
STREET = ((1024, 2048), (1024, 2048))
SCALES = tuple(
    ((side, -(-side * 4 // 3 // 32) * 32), (side, side * 4 // 3)) for side in (256, 512, 768)
)

CASES = {
    "A K=150 512x683": Sizes(150, (512, 683), (ADE,)),
    "B K=150 1024x2048": Sizes(150, (1024, 2048), (STREET,)),
    "C K=847 512x683": Sizes(847, (512, 683), (ADE,)),
    "D K=847 1024x2048": Sizes(847, (1024, 2048), (STREET,)),
    "E panoptic 800x1088": Sizes(133, (800, 1088), (((800, 1088), (800, 1088)),), kept=20),
    "F K=150 512x683, 6 views": Sizes(150, (512, 683), SCALES),
}

# Labels may differ where two scores are nearly equal (how nearly:
# tests/ops/segmentation/test_segmentation_native.py). The relative norm of n wrong ones among N
# pixels is about the root of n / N.
TOLERANCE = 0.01


def make_views(name: str, device: torch.device) -> list[SegmentationView]:
    sizes = CASES[name]
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float, *shape: int) -> Tensor:
        return (scale * torch.randn(1, *shape, generator=generator)).to(device)

    views = []
    for padded, image in sizes.inputs:
        low = (padded[0] // 4, padded[1] // 4)
        for flipped in (False, True) if len(sizes.inputs) > 1 else (False,):
            class_logits = draw(1.0, QUERIES, sizes.classes + 1)
            if sizes.kept is not None:
                class_logits[..., -1] = 12
                chosen = torch.arange(0, QUERIES, QUERIES // sizes.kept)
                class_logits[0, chosen, chosen] = 18
            views.append(
                SegmentationView(
                    class_logits,
                    draw(0.2, QUERIES, CHANNELS),
                    draw(1.0, CHANNELS, *low),
                    padded,
                    [image],
                    flipped,
                )
            )
    return views


def resize(maps: Tensor, size: Size) -> Tensor:
    """Bilinear, and computed even where the size stays."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def official(views: list[SegmentationView], sizes: Sizes) -> list[Tensor]:
    """Upsample, score, crop, resize, and `argmax`, one whole tensor after the other."""
    total = 0
    for class_logits, embed, features, padded, images, flipped in views:
        assert features is not None
        assert padded is not None
        assert images is not None
        ((height, width),) = images
        masks = resize(torch.einsum("bqc,bchw->bqhw", embed, features), padded)
        if sizes.kept is not None:
            masks = resize(masks[..., :height, :width], sizes.size)
            return as_tensors(*panoptic_map(class_logits[0], masks[0], **panoptic_rules(sizes)))
        chances = class_logits.softmax(-1)[..., :-1]
        scores = torch.einsum("bqk,bqhw->bkhw", chances, masks.sigmoid())
        scores = resize(scores[..., :height, :width], sizes.size)
        total = total + (scores.flip(-1) if flipped else scores)
    return [total.argmax(1)]


def panoptic_rules(sizes: Sizes) -> dict[str, Any]:
    return {
        "input_size": sizes.size,
        "image_size": sizes.size,
        "size": sizes.size,
        "thing_classes": frozenset(range(80)),
        "object_mask_threshold": 0.8,
        "overlap_threshold": 0.0,
        "confident_only": False,
    }


def ours(views: list[SegmentationView], sizes: Sizes) -> list[Tensor]:
    if sizes.kept is None:
        labels = average_semantic_segmentation(views, sizes.size)
        assert isinstance(labels, Tensor)
        return [labels]
    (result,) = panoptic_segmentation(
        *views[0][:3], sizes.size, thing_classes=range(80), overlap_threshold=0.0
    )
    return as_tensors(*result)


def as_tensors(panoptic: Tensor, segments: list[dict[str, Any]]) -> list[Tensor]:
    rows = [[s["id"], s["isthing"], s["category_id"], s["score"]] for s in segments]
    return [panoptic, torch.tensor(rows)]


def floor_of(views: list[SegmentationView], sizes: Sizes) -> Floor:
    """Both products; features once and labels."""
    rows = sizes.kept or QUERIES
    features = [view.pixel_features.numel() for view in views]
    pixels = sizes.size[0] * sizes.size[1]
    scores = len(views) * sizes.classes * QUERIES * pixels if sizes.kept is None else 0
    return Floor(2.0 * (rows * sum(features) + scores), 4 * sum(features) + 8 * pixels)


def run(name: str, device: torch.device, seconds: float, compiled: bool) -> list[FusedRow]:
    sizes, views = CASES[name], make_views(name, device)
    providers: dict[str, Callable[[], list[Tensor]]] = {
        EAGER: lambda: official(views, sizes),
        "mfkernels": lambda: ours(views, sizes),
    }
    if compiled:
        graph = torch.compile(official)
        providers["torch.compile"] = lambda: graph(views, sizes)
    floor = floor_of(views, sizes)
    return run_case("segmentation", name, device, [], providers, {}, seconds, TOLERANCE, floor)


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.split()[0])
def test_segmentation(benchmark: Any, name: str) -> None:
    benchmark(ours, make_views(name, torch.device("cpu")), CASES[name])


if __name__ == "__main__":
    main(__doc__.splitlines()[0], run, CASES)
