"""What is done to training images at random."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from maskformer.config.schema.fields import OneOrMore, Section, Side, Size

LabelResize = Literal["floor", "center"]


class SemanticAugmentation(Section):
    """Resize the short side, crop, jitter colours, flip, pad to the crop (paper appendix A)."""

    kind: Literal["semantic"] = "semantic"
    """Which augmentation: `semantic` crops to one size, `panoptic` does as DETR."""
    short_sides: Annotated[tuple[Side, ...], OneOrMore, Field(max_length=1000)] = (512,)
    """The short side is resized to one of these, in pixels, drawn for each image."""
    max_side: Side | None = None
    """Bound of the long side after that, in pixels; null: none."""
    label_resize: LabelResize = "floor"
    """Which label a pixel takes: `floor` is that of its upper left corner, as officially for label
    PNGs; `center` that of its centre, where the image's own pixels are taken, as officially for
    panoptic PNGs.
    """
    crop: Size = (512, 512)
    """Height and width of the training crop, in pixels; it decides memory and time of a step."""
    single_category_max_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Crops in which one class has more of the labelled area are drawn anew, up to ten times."""
    color: bool = True
    """Change brightness, contrast, saturation and hue at random."""
    flip: bool = True
    """Mirror half of the images left to right."""
    pad_to_crop: bool = True
    """Pad smaller images to the crop; the padding is void."""
    keep_empty: bool = False
    """Keep segments that were cropped away, as empty masks (official in panoptic training)."""


class PanopticAugmentation(Section):
    """Flip, then resize, half of the time after a resize and a random crop (as DETR does)."""

    kind: Literal["panoptic"] = "panoptic"
    """Which augmentation: `semantic` crops to one size, `panoptic` does as DETR."""
    short_sides: Annotated[tuple[Side, ...], OneOrMore, Field(max_length=1000)] = tuple(
        range(480, 801, 32)
    )
    """The short side is resized to one of these, in pixels, drawn for each image."""
    max_side: Side | None = 1333
    """Bound of the long side after that, in pixels; null: none."""
    label_resize: LabelResize = "center"
    """Which label a pixel takes: that of its `center`, as officially, or `floor`, that of its upper
    left corner.
    """
    crop_short_sides: Annotated[tuple[Side, ...], OneOrMore, Field(max_length=1000)] = (
        400,
        500,
        600,
    )
    """Short sides before the random crop, where there is one."""
    crop_range: tuple[Side, Side] = (384, 600)
    """Least and largest side of the random crop, in pixels."""
    flip: bool = True
    """Mirror half of the images left to right."""
    keep_empty: bool = True
    """Keep segments that were cropped away, as empty masks (official in panoptic training)."""


Augmentation = Annotated[SemanticAugmentation | PanopticAugmentation, Field(discriminator="kind")]
