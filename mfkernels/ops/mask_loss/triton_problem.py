"""A call of the mask loss as its kernels read it, and how it is cut into groups of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfkernels.ops.mask_loss.operator import Inputs
from mfkernels.ops.mask_loss.triton_pixels_launch import Pixels
from mfkernels.ops.mask_loss.triton_product_kernels import Matching, ProductSizes, Sizes
from mfkernels.triton.tensors import check_floats, with_flat_pixels

WORKSPACE = 1 << 25
"""Elements of a workspace of logits or gradients (128 MiB), or half of those of the pixel features,
if these are more; a larger batch goes in groups of images.
"""


@dataclass(frozen=True)
class Problem:
    """The tensors of a call as kernels read them, and the arguments that launches share."""

    embed: Tensor
    """Embeddings, or dense logits."""
    features: Tensor | None
    matching: Matching
    sizes: Sizes
    channels: int
    at_pixels: Pixels

    @classmethod
    def of(cls, given: Inputs) -> Problem:
        check_floats("mask_loss", given.mask_embed, given.pixel_features)
        embed, features = given.mask_embed, None
        if given.pixel_features is None:
            embed = with_flat_pixels(embed)
        else:
            features = with_flat_pixels(given.pixel_features)
        layers, images, queries = embed.shape[:3]
        height, width = (given.mask_embed if features is None else features).shape[-2:]
        at_pixels = Pixels.of(given, height, width)
        return cls(
            embed=embed,
            features=features,
            matching=at_pixels.matching,
            sizes=Sizes(
                first_image=0,
                images=images,
                layers=layers,
                queries=queries,
                max_count=given.assignment.shape[2],
                num_segments=given.num_segments,
                layer_rows=given.num_segments,
                packed=1,
            ),
            channels=1 if features is None else embed.shape[3],
            at_pixels=at_pixels,
        )

    @property
    def rows(self) -> int:
        """The most matched segments of an image, all layers together."""
        return self.sizes.layers * self.sizes.max_count

    @property
    def pixels(self) -> int:
        """Of a mask."""
        return self.at_pixels.pixels

    def groups(self) -> Iterator[tuple[Sizes, int]]:
        """The sizes of each group of images, and how many images it has.

        All images together, if the segments that there are fit into a workspace. A group of some
        has room for the most segments of an image in each, as only the device knows how many.
        """
        sizes, images, pixels = self.sizes, self.sizes.images, max(self.pixels, 1)
        features = 0 if self.features is None else self.features.numel()
        most_rows = max(WORKSPACE, features // 2) // (sizes.layers * pixels)
        if sizes.num_segments <= most_rows:
            yield sizes, images
            return
        group = max(1, min(images, most_rows // sizes.max_count))
        for first in range(0, images, group):
            size = min(group, images - first)
            rows = size * sizes.max_count
            yield sizes._replace(first_image=first, layer_rows=rows, packed=0), size

    def arguments(self, sizes: Sizes) -> dict[str, Any]:
        """What all products over a group of images are told."""
        return {
            "matching": self.matching,
            "sizes": self.product_sizes(sizes),
            "IMAGES": self.at_pixels.images_at_once,
        }

    def product_sizes(self, sizes: Sizes) -> ProductSizes:
        return ProductSizes(
            **sizes.as_argument()._asdict(), channels=self.channels, pixels=self.pixels
        )

    def workspace(self, sizes: Sizes) -> Tensor:
        """New memory for `[L, rows, h·w]` of a group."""
        shape = (sizes.layers, sizes.layer_rows, self.pixels)
        return self.matching.assignment_ptr.new_empty(shape, dtype=torch.float32)
