"""Random augmentation of training images."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maskformer.config.schema.fields import IS_NUMBER, OneOrMore, Section, Side, Size

LabelResize = Literal["floor", "center"]
Sides = Annotated[tuple[Side, ...], OneOrMore, Field(min_length=1, max_length=1000)]


class SemanticAugmentation(Section):
    """Resize the short side, crop, jitter colours, flip, pad to the crop (paper §4.2)."""

    kind: Literal["semantic"] = "semantic"
    """Which augmentation: `semantic` crops to one size, `panoptic` works as in DETR."""
    short_sides: Sides = (512,)
    """The short side is resized to one of these, in pixels, drawn for each image."""
    max_side: Side | None = None
    """Bound of the long side after that, in pixels; null: none."""
    label_resize: LabelResize = "floor"
    """Which label a resized pixel takes: `floor` takes the label at its upper left corner, as the
    official code does for label PNGs; `center` takes the one at its centre, where image pixels are
    also sampled, as the official code does for panoptic PNGs.
    """
    crop: Size = (512, 512)
    """Height and width of the training crop, in pixels; it determines memory and time of a step."""
    single_category_max_area: Annotated[float, Field(gt=0, le=1), IS_NUMBER] = 1.0
    """Crops in which one class covers a larger share of the labelled area are redrawn, up to ten
    times.
    """
    color: bool = True
    """Change brightness, contrast, saturation and hue at random."""
    flip: bool = True
    """Mirror half of the images left to right."""
    pad_to_crop: bool = True
    """Pad smaller images to the crop; the padding is void."""
    keep_empty: bool = False
    """Keep segments that were cropped away, as empty masks (official in panoptic training)."""


class PanopticAugmentation(Section):
    """Flip, then resize; half of the time, a resize and a random crop come first (as in DETR)."""

    kind: Literal["panoptic"] = "panoptic"
    """Which augmentation: `semantic` crops to one size, `panoptic` works as in DETR."""
    short_sides: Sides = tuple(range(480, 801, 32))
    """The short side is resized to one of these, in pixels, drawn for each image."""
    max_side: Side | None = 1333
    """Bound of the long side after that, in pixels; null: none."""
    label_resize: LabelResize = "center"
    """Which label a resized pixel takes: `center` takes the one at its centre, as in the official
    code; `floor` takes the one at its upper left corner.
    """
    crop_short_sides: Sides = (400, 500, 600)
    """Short sides before the random crop, if there is one."""
    crop_range: tuple[Side, Side] = (384, 600)
    """Least and largest side of the random crop, in pixels."""
    flip: bool = True
    """Mirror half of the images left to right."""
    keep_empty: bool = True
    """Keep segments that were cropped away, as empty masks (official in panoptic training)."""

    @model_validator(mode="after")
    def _ordered_range(self) -> Self:
        if self.crop_range[0] > self.crop_range[1]:
            raise ValueError(f"crop_range must be [least, largest], got {list(self.crop_range)}")
        return self


Augmentation = Annotated[SemanticAugmentation | PanopticAugmentation, Field(discriminator="kind")]
