"""CaseSizes, inputs and floors that the benchmarks of the mask operations share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from harness.timing import machine_rates
from torch import Tensor

from mfkernels import SegmentTargets


@dataclass(frozen=True)
class CaseSizes:
    """MaskFormer's, in the letters of the documentation."""

    images: int
    low: tuple[int, int]
    size: tuple[int, int]
    classes: int
    segments: int
    layers: int = 6
    queries: int = 100
    channels: int = 256


CASES = {
    "A ADE20K 4x512x512": CaseSizes(4, (128, 128), (512, 512), 150, 9),
    "B COCO 1x800x1344": CaseSizes(1, (200, 336), (800, 1344), 133, 12),
}


@dataclass
class Inputs:
    """Predictions that need gradients, and targets in both forms."""

    class_logits: Tensor
    mask_embed: Tensor
    pixel_features: Tensor
    targets: SegmentTargets
    official_targets: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.class_logits, self.mask_embed, self.pixel_features]

    @property
    def tensors(self) -> list[Tensor]:
        """All that a provider is given."""
        given = [*self.leaves, self.targets.labels, self.targets.label_map]
        given += [tensor for target in self.official_targets for tensor in target.values()]
        return [tensor for tensor in given if tensor is not None]

    @property
    def factored(self) -> dict[str, Tensor]:
        return {
            "class_logits": self.class_logits,
            "mask_embed": self.mask_embed,
            "pixel_features": self.pixel_features,
        }


def make_inputs(name: str, device: torch.device) -> Inputs:
    """Random predictions; segments that are the Voronoi cells of random points."""
    sizes = CASES[name]
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float, *shape: int) -> Tensor:
        values = scale * torch.randn(shape, generator=generator)
        return values.to(device).requires_grad_()

    height, width = sizes.size
    pixels = torch.stack(
        torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1
    ).float()
    maps, labels = [], []
    for _ in range(sizes.images):
        centers = torch.rand(sizes.segments, 2, generator=generator) * torch.tensor([height, width])
        distance = torch.cdist(pixels.flatten(0, 1), centers)
        maps.append(distance.argmin(1).reshape(height, width))
        labels.append(torch.randint(sizes.classes, (sizes.segments,), generator=generator))
    targets = SegmentTargets.from_label_maps(torch.stack(maps), labels).to(device)
    leading = (sizes.layers, sizes.images, sizes.queries)
    return Inputs(
        draw(1.0, *leading, sizes.classes + 1),
        draw(0.2, *leading, sizes.channels),
        draw(1.0, sizes.images, sizes.channels, *sizes.low),
        targets,
        [
            {"labels": label.to(device), "masks": targets.dense_masks(image)}
            for image, label in enumerate(labels)
        ],
    )


def random_matches(inputs: Inputs) -> Tensor:
    """`[L, B, T]` distinct queries."""
    layers, images, queries, _ = inputs.mask_embed.shape
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(layers, images, queries, generator=generator).argsort(-1)
    return order[..., : inputs.targets.max_count].to(inputs.targets.device)


@dataclass(frozen=True)
class Floor:
    """What no implementation can avoid."""

    flops: float
    """Of matrix products; the arithmetic on single elements is not counted."""
    bytes: float
    """Inputs once for each pass over them, and results."""

    def milliseconds(self, device: torch.device) -> float:
        flops, bandwidth = machine_rates(device)
        return 1e3 * max(self.flops / flops, self.bytes / bandwidth)


def matching_floor(name: str) -> Floor:
    """Logits of all layers, from features that are read once."""
    sizes = CASES[name]
    pixels = sizes.images * sizes.low[0] * sizes.low[1]
    features = 4 * pixels * sizes.channels
    return Floor(2 * sizes.layers * sizes.queries * sizes.channels * pixels, features)


def loss_floor(name: str) -> Floor:
    """Logits of matched masks, twice, and both gradients; features read twice and written once."""
    sizes = CASES[name]
    pixels = sizes.images * sizes.low[0] * sizes.low[1]
    features = 4 * pixels * sizes.channels
    return Floor(4 * 2 * sizes.layers * sizes.segments * sizes.channels * pixels, 3 * features)
