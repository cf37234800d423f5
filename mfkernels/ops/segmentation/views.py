"""The inputs of inference: the predictions for a batch with their sizes, and their checks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mfkernels.checks import (
    MaskPredictions,
    check_device,
    check_floating,
    check_predictions,
)
from mfkernels.ops.common.arguments import MOST_SIDE, as_size
from mfkernels.ops.segmentation.reference import finite_logits
from mfkernels.scalars import as_integer

Size = tuple[int, int]
"""Height and width in pixels."""
Sizes = Size | Sequence[Size]


class SegmentationView(NamedTuple):
    """Predictions for a batch of images at one scale, flipped or not.

    The fields have the same meaning as the arguments of `semantic_segmentation`.
    """

    class_logits: Tensor
    """`[B, Q, K+1]`; index K is "no object"."""
    mask_embed: Tensor
    """`[B, Q, C]`; or mask logits `[B, Q, h, w]`."""
    pixel_features: Tensor | None
    """`[B, C, h, w]`; None for mask logits."""
    input_size: Size | None = None
    """`(H, W)` of the padded network input; None: see `semantic_segmentation`."""
    image_sizes: Sequence[Size] | None = None
    """The part of the input that each image fills; None: the whole input."""
    flipped: bool = False
    """Whether the images were flipped left to right; the results are flipped back."""


class ViewSizes(NamedTuple):
    """The sizes of the network input, of the images inside it, and of the results."""

    input: Size
    images: list[Size]
    results: list[Size]
    stacked: bool


class Sides(NamedTuple):
    """The sides of the padded input and of the image in it, named as in the operators."""

    padded_height: int
    padded_width: int
    image_height: int
    image_width: int


class CheckedView(NamedTuple):
    """A view whose tensors and sizes have been checked."""

    class_logits: Tensor
    predictions: MaskPredictions
    sizes: ViewSizes
    flipped: bool

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.class_logits, self.predictions.embed, self.predictions.features

    def detached(self) -> CheckedView:
        """Detach all tensors, because `no_grad` does not stop forward-mode differentiation."""
        embed, features = self.predictions.embed, self.predictions.features
        predictions = self.predictions._replace(
            embed=embed.detach(), features=None if features is None else features.detach()
        )
        return self._replace(class_logits=self.class_logits.detach(), predictions=predictions)

    def logits(self, image: int) -> Tensor:
        """The mask logits `[Q, h, w]` of an image, finite, in at least float32."""
        return finite_logits(self.predictions.embed[0, image], self.features(image))

    def features(self, image: int) -> Tensor | None:
        return None if self.predictions.features is None else self.predictions.features[image]

    def sides(self, image: int) -> Sides:
        return Sides(*self.sizes.input, *self.sizes.images[image])


def check_views(views: Sequence[SegmentationView], size: Sizes) -> list[CheckedView]:
    checked = [check_view(view, size) for view in views]
    if not checked:
        raise ValueError("views must hold at least one view")
    first = checked[0]
    for index, view in enumerate(checked):
        if view.class_logits.device != first.class_logits.device:
            raise ValueError(
                f"views must be on one device; the first is on {first.class_logits.device}, "
                f"view {index} on {view.class_logits.device}"
            )
        if view.class_logits.shape[::2] != first.class_logits.shape[::2]:
            raise ValueError(
                "views must agree in images and classes: class_logits of the first are "
                f"{list(first.class_logits.shape)}, of view {index} {list(view.class_logits.shape)}"
            )
        if (view.predictions.features is None) != (first.predictions.features is None):
            raise ValueError("either all views must have pixel_features or none")
    return checked


def check_view(view: SegmentationView, size: Sizes) -> CheckedView:
    if not isinstance(view, SegmentationView):
        raise TypeError(f"views must hold SegmentationView, got {type(view).__name__}")
    predictions = check_predictions(view.mask_embed, view.pixel_features)
    if predictions.had_layers:
        raise ValueError(
            "inference takes the final layer only, without a layer axis; "
            f"got mask_embed {list(view.mask_embed.shape)}"
        )
    class_logits = view.class_logits
    check_floating("class_logits", class_logits)
    check_device("class_logits", class_logits, view.mask_embed.device)
    images, queries = view.mask_embed.shape[:2]
    if images == 0:
        raise ValueError(
            f"expected at least one image, got mask_embed {list(view.mask_embed.shape)}"
        )
    if class_logits.shape[:-1] != (images, queries) or class_logits.shape[-1] < 2:
        raise ValueError(
            f"class_logits must be [{images}, {queries}, K+1] to fit the masks, "
            f"got {list(class_logits.shape)}"
        )
    sizes = _check_sizes(predictions, size, view.input_size, view.image_sizes)
    return CheckedView(class_logits, predictions, sizes, view.flipped).detached()


def check_things(thing_classes: Collection[int], classes: int) -> frozenset[int]:
    things = frozenset(as_integer("a class of thing_classes", thing) for thing in thing_classes)
    if any(not 0 <= thing < classes for thing in things):
        raise ValueError(f"thing_classes must be in 0..{classes - 1}, got {sorted(things)}")
    return things


def _check_sizes(
    predictions: MaskPredictions,
    size: Sizes,
    input_size: Size | None,
    image_sizes: Sequence[Size] | None,
) -> ViewSizes:
    batch = predictions.embed.shape[1]
    common = as_size(size)
    results = [common] * batch if common is not None else _size_list("size", size, batch)
    if input_size is None:
        height, width = (
            predictions.embed if predictions.features is None else predictions.features
        ).shape[-2:]
        padded = common or (4 * height, 4 * width)
    else:
        padded = _size_list("input_size", [input_size], 1)[0]
    images = (
        [padded] * batch if image_sizes is None else _size_list("image_sizes", image_sizes, batch)
    )
    for image in images:
        if image[0] > padded[0] or image[1] > padded[1]:
            raise ValueError(f"image_sizes must fit into the input {padded}, got {image}")
    return ViewSizes(padded, images, results, stacked=common is not None)


def _size_list(name: str, sizes: Any, count: int) -> list[Size]:
    pairs = [as_size(size) for size in sizes] if isinstance(sizes, Sequence) else []
    valid = [pair for pair in pairs if pair is not None]
    if len(valid) != count or len(pairs) != count:
        single = "one pair or " if name == "size" else ""
        raise ValueError(
            f"{name} must be {single}{count} pairs of positive integers (height, width) of at most "
            f"{MOST_SIDE}, got {sizes!r}"
        )
    return valid
