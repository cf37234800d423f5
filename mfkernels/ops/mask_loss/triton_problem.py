"""The inputs of the mask loss as its kernels need them, and the split into groups of images."""

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
"""The largest workspace of logits or gradients in elements (128 MiB), or half the size of the pixel
features, if that is more. A batch that needs more is processed in groups of images.
"""


@dataclass(frozen=True)
class Problem:
    """The tensors of a call in the form that kernels need; the arguments that launches share."""

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
                num_segments=at_pixels.num_segments,
                layer_rows=at_pixels.num_segments,
                packed=1,
            ),
            channels=1 if features is None else embed.shape[3],
            at_pixels=at_pixels,
        )

    @property
    def rows(self) -> int:
        """The largest number of matched segments of an image, in all layers together."""
        return self.sizes.layers * self.sizes.max_count

    @property
    def pixels(self) -> int:
        """The number of pixels of a mask."""
        return self.at_pixels.pixels

    def groups(self) -> Iterator[tuple[Sizes, int]]:
        """Yield the sizes and the number of images of each group of images.

        If the N segments of the batch fit the workspace, all images are one group. Otherwise, each
        image of a group gets room for `max_count` segments, as only the device knows how many it
        has.
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
        """The arguments that all matrix products of a group of images share."""
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
        """Allocate the logits or gradients `[L, rows, h·w]` of a group."""
        shape = (sizes.layers, sizes.layer_rows, self.pixels)
        return self.matching.assignment_ptr.new_empty(shape, dtype=torch.float32)
