"""The sections of evaluation and prediction."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from maskformer.config.choices import InferencePrecision
from maskformer.config.schema.fields import (
    COARSEST_STRIDE,
    IS_NUMBER,
    MAX_CLASSES,
    MAX_SIDE,
    Fraction,
    Name,
    NonNegativeInt,
    OneOrMore,
    PositiveInt,
    Section,
    Side,
)


class ViewsConfig(Section):
    """Test-time augmentation (`--tta`): averages the class scores of an image in several sizes and
    of their mirror images.
    """

    scales: Annotated[
        tuple[Annotated[float, Field(gt=0, le=64), IS_NUMBER], ...],
        OneOrMore,
        Field(min_length=1, max_length=100),
    ] = (0.5, 0.75, 1, 1.25, 1.5, 1.75)
    """Multiples of `data.test_short_side`. The defaults are the official values for ADE20K."""
    short_sides: (
        Annotated[tuple[Side, ...], OneOrMore, Field(min_length=1, max_length=100)] | None
    ) = None
    """Short sides in pixels, instead of `scales`."""
    max_side: Side | None = None
    """Bound of the long side in pixels. Default: `data.test_max_side` times the largest scale, or
    none with `short_sides`.
    """
    flip: bool = True
    """Average the mirror image of each size, too."""
    from_original: bool = False
    """Resize the original image, which keeps details in sizes above the test size. The official
    code resizes the image that was already resized to the test size.
    """

    @model_validator(mode="after")
    def _one_kind_of_size(self) -> Self:
        if self.short_sides is not None and "scales" in self.model_fields_set:
            raise ValueError(
                "scales and short_sides are both given, expected one of them: set "
                "short_sides=null to use scales"
            )
        return self

    @model_serializer(mode="wrap")
    def _serialize(self, to_values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `scales` if `short_sides` is set, because a recipe cannot have both."""
        values: dict[str, Any] = to_values(self)
        if self.short_sides is not None:
            del values["scales"]
        return values


class EvalConfig(Section):
    """What evaluation measures and the thresholds of panoptic inference (paper §3.4)."""

    semantic: bool = True
    """Measure mIoU and related metrics."""
    panoptic: bool = False
    """Measure PQ; needs data that distinguishes objects."""
    instances: bool = False
    """Measure the mask AP of things, as COCO does; needs pycocotools."""
    cityscapes: bool = False
    """Also measure category IoU and iIoU, as Cityscapes does; needs `format: folder`, its 19
    classes, and `*_instanceIds.png` beside the label files.
    """
    object_mask_threshold: Fraction = 0.8
    """Queries with a lower class probability do not become segments."""
    overlap_threshold: Fraction = 0.8
    """Segments that keep less than this share of their mask after all overlaps are dropped."""
    resize_logits: bool = False
    """Resize mask logits instead of scores to the original size (the official order if panoptic is
    on).
    """
    all_crowds: bool = False
    """PQ ignores predictions on any crowd of their class; the official code only on the last crowd
    that the annotation of an image lists.
    """
    batch_size: PositiveInt = 1
    """Images read together. Only images of the same padded size run together, so results
    depend on the batch size by rounding alone.
    """
    precision: InferencePrecision = "fp32"
    """Autocast of the network in `evaluate` and `predict`; `auto` is bf16 if the machine supports
    it. Evaluations in training follow `train.precision`.
    """
    tta: ViewsConfig = ViewsConfig()
    """What `--tta` averages over."""
    all_classes: bool = False
    """Tables of more than 30 classes also show those that do not occur."""
    pictures: NonNegativeInt = 8
    """How many predictions are drawn for TensorBoard and the run folder."""

    @model_validator(mode="after")
    def _measures_something(self) -> EvalConfig:
        if not (self.semantic or self.panoptic or self.instances):
            raise ValueError(
                "semantic, panoptic and instances are all off, expected at least one of them"
            )
        if self.cityscapes and not self.semantic:
            raise ValueError("cityscapes measures label maps, but semantic is off: turn it on")
        return self


class PredictConfig(Section):
    """How `maskformer predict` processes large images and draws its results."""

    tile: Annotated[int, Field(ge=COARSEST_STRIDE, le=MAX_SIDE), IS_NUMBER] | None = None
    """Side in pixels of the tiles in which larger images are predicted (semantic mode only). Each
    tile is resized to `data.test_short_side` like an image: tiles of that side keep every detail;
    larger tiles are shrunk but see more of the image at once.
    """
    tile_overlap: Annotated[float, Field(ge=0, le=0.75), IS_NUMBER] = 0.25
    """Smallest overlap of neighbouring tiles, as a share of a tile's side; class scores are blended
    there.
    """
    opacity: Fraction = 0.6
    """Opacity of the colours over the image: 0 shows only the image, 1 only the colours."""
    picture_format: Literal["auto", "png", "jpg", "webp"] = "auto"
    """Format of the overlays; `auto` is PNG up to four million pixels and JPEG above."""
    things: Annotated[tuple[Name, ...], OneOrMore, Field(max_length=MAX_CLASSES)] | None = None
    """The classes whose objects are distinguished, by name. Default: those of the training data.
    Weights from Hugging Face and of the authors do not say which classes are things: of 133
    classes, as in COCO panoptic, the first 80 are taken, else none.
    """
