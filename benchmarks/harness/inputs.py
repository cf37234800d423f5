"""Sizes, inputs and floors that the benchmarks of the mask operations share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from harness.comparison import Floor
from torch import Tensor

from mfkernels import SegmentTargets


@dataclass(frozen=True)
class CaseSizes:
    """Problem sizes of MaskFormer. `low` and `size` are the (height, width) of the mask logits and
    of the targets, and `segments` is the number per image.
    """

    images: int
    low: tuple[int, int]
    size: tuple[int, int]
    classes: int
    segments: int
    layers: int = 6
    queries: int = 100
    channels: int = 256
    dtype: torch.dtype = torch.float32
    """Dtype of the predictions. Baselines of matching, mask loss and criterion still compute in at
    least float32, as existing matchers and losses do.
    """
    layout: torch.memory_format = torch.contiguous_format
    """Memory format of the pixel features."""

    def shrunk(self) -> CaseSizes:
        """A smaller problem of the same kind, for checking results without timing them."""
        low, size = ((side // 8, other // 8) for side, other in (self.low, self.size))
        return replace(self, low=low, size=size, layers=2, channels=32)

    @property
    def pixels(self) -> int:
        """Pixels of the mask logits, over all images."""
        return self.images * self.low[0] * self.low[1]

    def tolerance(self, float32_tolerance: float) -> float:
        """The tolerance for results in the dtype of the predictions: wider in half precision."""
        return float32_tolerance if self.dtype == torch.float32 else 2e-2


CPU_CASES = {
    "A ADE20K 4x512x512": CaseSizes(4, (128, 128), (512, 512), 150, 9),
    "B COCO 1x800x1344": CaseSizes(1, (200, 336), (800, 1344), 133, 12),
}
CPU_CASES["A-bfloat16 ADE20K 4x512x512"] = replace(
    CPU_CASES["A ADE20K 4x512x512"], dtype=torch.bfloat16
)
GPU_CASES = {
    f"{name.split()[0]}-{str(dtype)[6:]} {name}, {str(dtype)[6:]}": replace(
        sizes, images=16, dtype=dtype
    )
    for dtype in (torch.bfloat16, torch.float32)
    for name, sizes in {
        "A ADE20K 16x512x512": CPU_CASES["A ADE20K 4x512x512"],
        "B COCO 16x800x1344": CPU_CASES["B COCO 1x800x1344"],
    }.items()
}
CASES = GPU_CASES if torch.cuda.is_available() else CPU_CASES


@dataclass
class Inputs:
    """Predictions that require gradients, and targets in this project's and the official format."""

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
        """All tensors that a provider is given."""
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


def sizes_of(case: str, shrink: bool) -> CaseSizes:
    return CASES[case].shrunk() if shrink else CASES[case]


def make_inputs(
    sizes: CaseSizes, device: torch.device, compute: torch.dtype | None = None
) -> Inputs:
    """Random predictions, and targets whose segments are Voronoi cells of random points.

    Values are rounded to the dtype of the case and then converted to `compute`, so that a float64
    truth sees exactly the same numbers.
    """
    generator = torch.Generator(device).manual_seed(0)

    def draw(scale: float, *shape: int) -> Tensor:
        values = scale * torch.randn(shape, generator=generator, device=device)
        return values.to(sizes.dtype).to(compute or sizes.dtype)

    axes = [torch.arange(side, dtype=torch.float32, device=device) for side in sizes.size]
    pixels = torch.cartesian_prod(*axes)
    extent = torch.tensor(sizes.size, device=device)
    maps, labels = [], []
    for _ in range(sizes.images):
        centers = extent * torch.rand(sizes.segments, 2, generator=generator, device=device)
        maps.append(torch.cdist(pixels, centers).argmin(1).reshape(sizes.size).cpu())
        drawn = torch.randint(sizes.classes, (sizes.segments,), generator=generator, device=device)
        labels.append(drawn.cpu())
    targets = SegmentTargets.from_label_maps(torch.stack(maps), labels).to(device)
    leading = (sizes.layers, sizes.images, sizes.queries)
    class_logits = draw(1.0, *leading, sizes.classes + 1)
    embed = draw(0.2, *leading, sizes.channels)
    features = draw(1.0, sizes.images, sizes.channels, *sizes.low)
    return Inputs(
        class_logits.requires_grad_(),
        embed.requires_grad_(),
        features.to(memory_format=sizes.layout).requires_grad_(),
        targets,
        [
            {"labels": label.to(device), "masks": targets.dense_masks(image)}
            for image, label in enumerate(labels)
        ],
    )


def random_matches(inputs: Inputs) -> Tensor:
    """Random matches `[L, B, T]`: for each segment, a different query."""
    layers, images, queries, _ = inputs.mask_embed.shape
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(layers, images, queries, generator=generator).argsort(-1)
    return order[..., : inputs.targets.max_count].to(inputs.targets.device)


def matching_floor(sizes: CaseSizes) -> Floor:
    """Computing the logits of all layers, with the features read once."""
    features = sizes.dtype.itemsize * sizes.pixels * sizes.channels
    flops = 2 * sizes.layers * sizes.queries * sizes.channels * sizes.pixels
    return Floor(flops, features, sizes.dtype)


def loss_floor(sizes: CaseSizes) -> Floor:
    """Computing the matched masks' logits twice (forward and again in backward) and both gradients.

    The features are read twice and their gradient is written once.
    """
    features = sizes.dtype.itemsize * sizes.pixels * sizes.channels
    flops = 4 * 2 * sizes.layers * sizes.segments * sizes.channels * sizes.pixels
    return Floor(flops, 3 * features, sizes.dtype)
