"""From class logits, mask embeddings and pixel features to label maps.

A to D and G to I: semantic. E: panoptic, with 20 of 100 queries kept. F: semantic with test-time
augmentation, averaging scores over three scales, each with and without horizontal flip. The
baseline (`reference`) is the official computation, which materialises every intermediate tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from harness.comparison import COMPILE, NATIVE, REFERENCE, Comparison, Floor, Provider, compiled
from harness.plugin import comparison_test
from torch import Tensor
from torch.nn import functional as F

from mfkernels import SegmentationView, average_semantic_segmentation, panoptic_segmentation
from mfkernels.ops.segmentation.reference import panoptic_map

Size = tuple[int, int]
QUERIES, CHANNELS = 100, 256
THINGS = 20
CLASSES_AT_ONCE = 50
"""Classes that `truth` scores at a time: the float64 scores of all 847 would not fit in memory."""


@dataclass(frozen=True)
class Sizes:
    """`inputs`: for each view, the padded input size (four times the mask logits) and, inside it,
    the image size.
    """

    classes: int
    size: Size
    inputs: tuple[tuple[Size, Size], ...]
    kept: int | None = None
    """Panoptic: number of queries above the score threshold. None: semantic."""
    confident: int = 0
    """Semantic: number of queries that confidently predict an object, as in a trained model; 0: all
    queries are random.
    """
    queries: int = QUERIES

    def shrunk(self) -> Sizes:
        """A smaller problem of the same kind, for checking results without timing them."""

        def smaller(size: Size) -> Size:
            return size[0] // 8, size[1] // 8

        inputs = tuple(
            ((-(-h // 256) * 32, -(-w // 256) * 32), smaller(image))
            for (h, w), image in self.inputs
        )
        return replace(self, classes=max(self.classes // 8, 20), size=smaller(self.size),
                       inputs=inputs)  # fmt: skip


ADE = ((512, 704), (512, 683))
STREET = ((1024, 2048), (1024, 2048))
SCALES = tuple(
    ((side, -(-side * 4 // 3 // 32) * 32), (side, side * 4 // 3)) for side in (256, 512, 768)
)

CPU_CASES = {
    "A K=150 512x683": Sizes(150, (512, 683), (ADE,)),
    "B K=150 1024x2048": Sizes(150, (1024, 2048), (STREET,)),
    "C K=847 512x683": Sizes(847, (512, 683), (ADE,)),
    "D K=847 1024x2048": Sizes(847, (1024, 2048), (STREET,)),
    "E panoptic 800x1088": Sizes(133, (800, 1088), (((800, 1088), (800, 1088)),), kept=20),
    "F K=150 512x683, 6 views": Sizes(150, (512, 683), SCALES),
}
GPU_CASES = {
    "G K=19 1024x2048": Sizes(19, (1024, 2048), (STREET,)),
    "H K=150 1024x2048, trained": Sizes(150, (1024, 2048), (STREET,), confident=15),
    "I K=150 512x683, trained": Sizes(150, (512, 683), (ADE,), confident=15),
}
CASES = CPU_CASES | (GPU_CASES if torch.cuda.is_available() else {})

MAX_WRONG_SHARE = 1e-4
"""Share of pixels whose label may differ because two scores are nearly equal; how nearly is tested
in tests/ops/segmentation/test_segmentation_native.py.
"""


def make_views(
    sizes: Sizes, device: torch.device, dtype: torch.dtype = torch.float32
) -> list[SegmentationView]:
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float, *shape: int) -> Tensor:
        return (scale * torch.randn(1, *shape, generator=generator)).to(device, dtype)

    views = []
    for padded, image in sizes.inputs:
        low = (padded[0] // 4, padded[1] // 4)
        for flipped in (False, True) if len(sizes.inputs) > 1 else (False,):
            class_logits = draw(1.0, sizes.queries, sizes.classes + 1)
            if sizes.kept is not None:
                class_logits[..., -1] = 12
                chosen = torch.arange(0, sizes.queries, sizes.queries // sizes.kept)
                class_logits[0, chosen, chosen % sizes.classes] = 18
            factors = draw(0.2, sizes.queries, CHANNELS), draw(1.0, CHANNELS, *low)
            if sizes.confident:
                class_logits[..., -1] = 8
                make_objects(class_logits, *factors, sizes.confident)
            views.append(SegmentationView(class_logits, *factors, padded, [image], flipped))
    return views


def make_objects(class_logits: Tensor, embed: Tensor, features: Tensor, count: int) -> None:
    """Give each of the first `count` queries its own class and a disc as its mask; the masks of the
    other queries remain noise.
    """
    generator = torch.Generator().manual_seed(1)
    index = torch.arange(count)
    class_logits[0, index, -1] = 0
    class_logits[0, index, index] = 10
    centers = torch.rand(count, 2, 1, 1, generator=generator).to(features)
    height, width = features.shape[-2:]
    y = torch.linspace(0, 1, height).to(features)[:, None]
    x = torch.linspace(0, 1, width).to(features)
    features[0, :count] = 6 - 200 * ((y - centers[:, 0]) ** 2 + (x - centers[:, 1]) ** 2)
    embed[0, :count] = torch.eye(count, embed.shape[-1]).to(embed)


def resize(maps: Tensor, size: Size) -> Tensor:
    """Bilinear resize, computed even if the size does not change, as in the official code."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def reference(views: list[SegmentationView], sizes: Sizes) -> list[Tensor]:
    """Upsample, score, crop, resize and take the `argmax`, each on whole tensors."""
    if sizes.kept is not None:
        return panoptic(views[0], sizes)
    return [sum(scores(view, sizes, slice(sizes.classes)) for view in views).argmax(1)]


def panoptic(view: SegmentationView, sizes: Sizes) -> list[Tensor]:
    masks = upsampled(view)
    masks = resize(masks, sizes.size)
    return as_tensors(*panoptic_map(view.class_logits[0], masks[0], **panoptic_rules(sizes)))


def upsampled(view: SegmentationView) -> Tensor:
    """Mask logits upsampled to the input size, with the padding cropped off."""
    _, embed, features, padded, images, _ = view
    ((height, width),) = images
    masks = resize(torch.einsum("bqc,bchw->bqhw", embed, features), padded)
    return masks[..., :height, :width]


def scores(view: SegmentationView, sizes: Sizes, classes: slice) -> Tensor:
    """Scores `[1, k, H, W]` of a slice of the classes in one view."""
    probabilities = view.class_logits.softmax(-1)[..., :-1][..., classes]
    found = torch.einsum("bqk,bqhw->bkhw", probabilities, upsampled(view).sigmoid())
    found = resize(found, sizes.size)
    return found.flip(-1) if view.flipped else found


@torch.no_grad()
def truth(views: list[SegmentationView], sizes: Sizes) -> list[Tensor]:
    """The reference in float64, a few classes at a time to limit peak memory."""
    if sizes.kept is not None:
        return panoptic(views[0], sizes)
    best, labels = torch.tensor(-1.0), torch.tensor(0)
    for first in range(0, sizes.classes, CLASSES_AT_ONCE):
        part = slice(first, min(first + CLASSES_AT_ONCE, sizes.classes))
        top, where = sum(scores(view, sizes, part) for view in views).max(1)
        labels = torch.where(top > best.to(top), where + first, labels.to(where.device))
        best = torch.maximum(top, best.to(top))
    return [labels]


def share_of_wrong_pixels(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Share of pixels with a wrong label, or 1 if the lists of segments differ."""
    for one, other in zip(found[1:], expected[1:], strict=True):
        if one.shape != other.shape or not torch.allclose(one.double(), other.double(), atol=1e-4):
            return 1.0
    return float((found[0].flatten() != expected[0].flatten()).double().mean())


def panoptic_rules(sizes: Sizes) -> dict[str, Any]:
    return {
        "input_size": sizes.size,
        "image_size": sizes.size,
        "size": sizes.size,
        "thing_classes": frozenset(range(THINGS)),
        "object_mask_threshold": 0.8,
        "overlap_threshold": 0.0,
        "confident_only": False,
    }


def native(views: list[SegmentationView], sizes: Sizes) -> list[Tensor]:
    if sizes.kept is None:
        labels = average_semantic_segmentation(views, sizes.size)
        assert isinstance(labels, Tensor)
        return [labels]
    (result,) = panoptic_segmentation(
        *views[0][:3], sizes.size, thing_classes=range(THINGS), overlap_threshold=0.0
    )
    return as_tensors(*result)


def as_tensors(panoptic: Tensor, segments: list[dict[str, Any]]) -> list[Tensor]:
    rows = [[s["id"], s["isthing"], s["category_id"], s["score"]] for s in segments]
    return [panoptic, torch.tensor(rows)]


def floor_of(views: list[SegmentationView], sizes: Sizes) -> Floor:
    """FLOPs of both products; memory traffic for reading the features once and writing labels."""
    rows = sizes.kept or sizes.queries
    features = [view.pixel_features.numel() for view in views]
    pixels = sizes.size[0] * sizes.size[1]
    scored = len(views) * sizes.classes * sizes.queries if sizes.kept is None else 0
    return Floor(2.0 * (rows * sum(features) + scored * pixels), 4 * sum(features) + 8 * pixels)


def comparison(sizes: Sizes, device: torch.device) -> Comparison:
    views = make_views(sizes, device)

    def build(compute: Callable[..., list[Tensor]]) -> Provider:
        return Provider(partial(compute, views, sizes))

    return Comparison(
        {
            NATIVE: lambda: build(native),
            REFERENCE: lambda: build(reference),
            COMPILE: lambda: build(compiled(reference)),
        },
        truth=lambda: truth(make_views(sizes, device, torch.float64), sizes),
        error=share_of_wrong_pixels,
        tolerance=MAX_WRONG_SHARE,
        floor=floor_of(views, sizes),
    )


def make(case: str, device: torch.device, shrink: bool) -> Comparison:
    return comparison(CASES[case].shrunk() if shrink else CASES[case], device)


test_segmentation = comparison_test(CASES, [NATIVE, REFERENCE, COMPILE], make)
