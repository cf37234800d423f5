"""The outputs of models: dicts of tensors with methods that compute segmentations from them.

`MaskOutputs` holds the masks and classes of queries, `PixelOutputs` the scores of pixels. Both have
`semantic`, `panoptic` and `instances` for a batch, `view` and `average_views` for several views of
one image, and `scores` for its tiles, so inference works the same for all models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import mfkernels
from maskformer.errors import UsageError
from mfkernels.torch_internals import register_mapping

Size = tuple[int, int]
Panoptic = tuple[Tensor, list[dict[str, Any]]]
"""`[H, W]` int32 segment ids, and a dict per segment: `id`, `isthing`, `category_id` (the class
index) and `score`.
"""

STRIDE = 4
"""Stride of the pixel features, in pixels of the input."""
ELEMENTS_AT_ONCE = 2**22
"""Number of scores that a per-pixel model computes at a time, so that it never needs memory for
classes x height x width.
"""


class Frames(NamedTuple):
    """The sizes of the network input, of the images inside it, and of the maps, in pixels.

    Attributes:
        input_size: height and width of the padded network input.
        image_sizes: height and width of each image inside the input.
        sizes: height and width of each map, usually those of the original images.
    """

    input_size: Size
    image_sizes: Sequence[Size]
    sizes: Sequence[Size]


class MaskOutputs(dict[str, Tensor]):
    """The outputs of `MaskFormer` for L decoder layers, B images, Q queries and K classes.

    Keys:
        class_logits: `[L, B, Q, K+1]`, index K is "no object"; the last layer is the final one.
        mask_embed: `[L, B, Q, C]`.
        pixel_features: `[B, C, h, w]` at stride 4.
        mask_logits: `[L, B, Q, h, w]`, only with `with_mask_logits`. A model prepared for
            prediction on a CPU may return them in place of `mask_embed` and `pixel_features`.
    """

    def semantic(self, frames: Frames, *, resize_logits: bool = False) -> list[Tensor]:
        """Find the class of each pixel, int64 `[H_b, W_b]` for each image (paper §3.4).

        Args:
            frames: the sizes of the input, the images and the maps.
            resize_logits: see `mfkernels.semantic_segmentation`.
        """
        maps = mfkernels.semantic_segmentation(
            *self._final(),
            list(frames.sizes),
            input_size=frames.input_size,
            image_sizes=list(frames.image_sizes),
            resize_logits=resize_logits,
        )
        return list(maps)

    def panoptic(
        self,
        frames: Frames,
        thing_classes: Sequence[int],
        *,
        object_mask_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
    ) -> list[Panoptic]:
        """Find the segments of each image; see `mfkernels.panoptic_segmentation` (paper §3.4)."""
        return mfkernels.panoptic_segmentation(
            *self._final(),
            list(frames.sizes),
            thing_classes=thing_classes,
            object_mask_threshold=object_mask_threshold,
            overlap_threshold=overlap_threshold,
            input_size=frames.input_size,
            image_sizes=list(frames.image_sizes),
        )

    def instances(self, frames: Frames, thing_classes: Sequence[int]) -> list[mfkernels.Instances]:
        """Find the objects of each image; see `mfkernels.instance_segmentation`.

        Raises:
            UsageError: there are no thing classes.
        """
        if not thing_classes:
            raise UsageError(
                "instances need thing classes, but the data set has none: see data.things, or "
                "isthing in COCO's JSON; for weights from elsewhere, predict.things"
            )
        return mfkernels.instance_segmentation(
            *self._final(),
            list(frames.sizes),
            thing_classes=thing_classes,
            input_size=frames.input_size,
            image_sizes=list(frames.image_sizes),
        )

    def view(
        self, input_size: Size, image_size: Size, *, flipped: bool
    ) -> mfkernels.SegmentationView:
        """Return the predictions for one image, for `average_views`.

        All views are in memory at the same time, so the masks are stored in the smaller of their
        two forms: logits `[Q, h, w]`, or factors, of which the larger one is `[C, h, w]`.
        """
        classes, embed, features = self._final()
        if features is not None and embed.shape[-2] <= embed.shape[-1]:
            embed, features = mfkernels.mask_logits(embed[None], features)[0], None
        return mfkernels.SegmentationView(
            class_logits=classes,
            mask_embed=embed,
            pixel_features=features,
            input_size=input_size,
            image_sizes=[image_size],
            flipped=flipped,
        )

    @staticmethod
    def average_views(
        views: Sequence[mfkernels.SegmentationView], size: Size, *, resize_logits: bool = False
    ) -> Tensor:
        """Find the class of each pixel of one image from the mean scores of all views.

        Returns:
            `[H, W]`, int64.
        """
        maps = mfkernels.average_semantic_segmentation(
            list(views), size, resize_logits=resize_logits
        )
        return maps[0]

    @staticmethod
    def scores(
        view: mfkernels.SegmentationView,
        size: Size,
        resize_logits: bool,
        classes: slice,
    ) -> Tensor:
        """Compute the scores of some classes in one image, `[k, H, W]` (paper §3.4)."""
        logits = view.class_logits
        wanted = logits[..., :-1][..., classes]
        stop = (classes.start or 0) + wanted.shape[-1]
        others = torch.cat([logits[..., : classes.start or 0], logits[..., stop:]], -1)
        # One column stands for all other classes, so that the softmax of the wanted ones is kept.
        rest = others.logsumexp(-1, keepdim=True)
        reduced = view._replace(class_logits=torch.cat([wanted, rest], -1))
        _, scores = mfkernels.average_semantic_segmentation(
            [reduced], size, resize_logits=resize_logits, return_scores=True
        )
        return scores[0]

    def _final(self) -> tuple[Tensor, Tensor, Tensor | None]:
        classes = self["class_logits"][-1]
        if "pixel_features" in self:
            return classes, self["mask_embed"][-1], self["pixel_features"]
        return classes, self["mask_logits"][-1], None


class PixelView(NamedTuple):
    """The predictions of a per-pixel model for one image.

    Attributes:
        logits: `[K, h, w]`.
        input_size: height and width of the padded network input.
        image_size: height and width of the image inside the input.
        flipped: whether the image was mirrored left to right.
    """

    logits: Tensor
    input_size: Size
    image_size: Size
    flipped: bool


class PixelOutputs(dict[str, Tensor]):
    """The outputs of the per-pixel baselines.

    Keys:
        pixel_logits: `[L, B, K, h, w]` at stride 4, the final layer last.
    """

    def semantic(self, frames: Frames, *, resize_logits: bool = False) -> list[Tensor]:
        """Find classes as `MaskOutputs.semantic`; the logits are always resized."""
        views = [
            PixelView(logits, frames.input_size, image_size, flipped=False)
            for logits, image_size in zip(self["pixel_logits"][-1], frames.image_sizes, strict=True)
        ]
        return [_best_class([view], size) for view, size in zip(views, frames.sizes, strict=True)]

    def panoptic(
        self,
        frames: Frames,
        thing_classes: Sequence[int],
        *,
        object_mask_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
    ) -> list[Panoptic]:
        """Return one segment per class that occurs: a per-pixel model does not separate objects."""
        things = set(thing_classes)
        return [_segments_from_classes(classes, things) for classes in self.semantic(frames)]

    def instances(self, frames: Frames, thing_classes: Sequence[int]) -> list[mfkernels.Instances]:
        """Raise `UsageError`: a per-pixel model cannot separate objects of one class."""
        raise UsageError("instances need a model with masks, got a per-pixel one")

    def view(self, input_size: Size, image_size: Size, *, flipped: bool) -> PixelView:
        """Return the predictions for one image, for `average_views`."""
        return PixelView(self["pixel_logits"][-1][0], input_size, image_size, flipped)

    @staticmethod
    def average_views(
        views: Sequence[PixelView], size: Size, *, resize_logits: bool = False
    ) -> Tensor:
        """As `MaskOutputs.average_views`."""
        return _best_class(views, size)

    @staticmethod
    def scores(view: PixelView, size: Size, resize_logits: bool, classes: slice) -> Tensor:
        """As `MaskOutputs.scores`; the scores are the logits."""
        return _pixel_scores(view, classes, size)


Outputs = MaskOutputs | PixelOutputs


register_mapping(MaskOutputs)
register_mapping(PixelOutputs)


def as_outputs(values: Mapping[str, Tensor]) -> Outputs:
    """Restore the class of outputs that became a plain dict, such as by a transfer to a device."""
    if isinstance(values, Outputs):
        return values
    return PixelOutputs(values) if "pixel_logits" in values else MaskOutputs(values)


def _best_class(views: Sequence[PixelView], size: Size) -> Tensor:
    """Return `argmax_k` of the scores `[K, H, W]` summed over views, a few classes at a time."""
    classes = len(views[0].logits)
    pixels = max(size[0] * size[1], *(view.input_size[0] * view.input_size[1] for view in views))
    step = max(ELEMENTS_AT_ONCE // pixels, 1)
    best = views[0].logits.new_full(size, -torch.inf, dtype=torch.float32)
    labels = torch.zeros(size, dtype=torch.int64, device=best.device)
    for start in range(0, classes, step):
        chunk = slice(start, start + step)
        scores = _pixel_scores(views[0], chunk, size)
        for view in views[1:]:
            scores = scores + _pixel_scores(view, chunk, size)
        top, label = scores.max(dim=0)
        better = top > best
        best = torch.where(better, top, best)
        labels = torch.where(better, label + start, labels)
    return labels


def _pixel_scores(view: PixelView, classes: slice, size: Size) -> Tensor:
    height, width = view.image_size
    logits = view.logits[None, classes].float()
    # As in the official code, upsample by the stride instead of to the size of the input, which
    # need not be a multiple of the stride.
    full = resize(logits, (STRIDE * logits.shape[-2], STRIDE * logits.shape[-1]))
    scores = resize(full[..., :height, :width], size)[0]
    return scores.flip(-1) if view.flipped else scores


def resize(maps: Tensor, size: Size) -> Tensor:
    """Resize `[N, K, h, w]` bilinearly, without aligned corners, as the official code does."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _segments_from_classes(classes: Tensor, things: set[int]) -> Panoptic:
    present, inverse = classes.unique(return_inverse=True)
    segments = [
        {"id": index, "isthing": label in things, "category_id": label, "score": 1.0}
        for index, label in enumerate(present.tolist(), start=1)
    ]
    return (inverse + 1).int(), segments
