"""The schema of a recipe: its sections, their defaults and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    Tag,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from maskformer.system.documents import shown

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Byte = Annotated[int, Field(ge=0, le=255)]

PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of the images of ImageNet, per channel, in units of 0..255."""
MIDDLE_LEVEL = 127.5
"""Mean and deviation of channels that are not RGB: 0..255 becomes -1..1."""
MAX_PIXELS = 178_956_970
"""Of an image; what Pillow reads unless it is told otherwise."""
MAX_NAME = 1000
MAX_DIGITS = 19
# Upper bounds lie far beyond any model that is known, and far below what harms: see `check_size`.
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31)]
Integer = Annotated[int, Field(gt=-(2**63), lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(gt=0, le=1 << 15)]
"""Of an image, in pixels."""
Channels = Annotated[int, Field(gt=0, le=1 << 14)]
MAX_BANDS = 1 << 10
Percent = Annotated[float, Field(ge=0, le=100)]
Wide = Annotated[int, Field(gt=0, le=1 << 16)]
"""Classes, queries and the like."""
Layers = Annotated[int, Field(ge=0, le=64)]
Dilation = Annotated[int, Field(gt=0, le=64)]


def _check_channels(value: Any) -> Any:
    bands = value if isinstance(value, list | tuple) else [value]
    if not 0 < len(bands) <= MAX_BANDS or not all(
        isinstance(band, int) and not isinstance(band, bool) and 0 < band <= MAX_BANDS
        for band in bands
    ):
        raise ValueError(
            "expected a number of channels, such as 4, or a list of bands counted from 1, such as "
            f"[4, 3, 2]; both up to {MAX_BANDS}; got {shown(value)}"
        )
    return value


ImageChannels = Annotated[int | tuple[int, ...], BeforeValidator(_check_channels)]
"""Of an image file: how many, or the numbers of those that are taken."""


def _check_text(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        raise ValueError(
            f"a name must be text, got {shown(value)}; YAML reads no, off, yes, on as false and "
            "true, and digits as a number: write the name in quotes"
        )
    return value


def _check_name(name: str) -> str:
    if len(name) > MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} characters")
    return name


def _as_list(value: Any) -> Any:
    """Lets one value stand for a list of one."""
    return (value,) if isinstance(value, str | int | float) else value


# Not `max_length`: pydantic would refuse the surrogates that stand for bytes that are not UTF-8.
Name = Annotated[str, BeforeValidator(_check_text), AfterValidator(_check_name)]
OneOrMore = BeforeValidator(_as_list)
Option = (
    Annotated[int, Field(ge=0, le=1 << 14)]
    | Annotated[float, Field(ge=0, le=1 << 14)]
    | Annotated[tuple[Annotated[int, Field(ge=0, le=1 << 14)], ...], Field(max_length=16)]
)
_OURS_TO_SET = frozenset(
    {
        *("cache_dir", "checkpoint_path", "exportable", "feature_cfg", "features_only"),
        *("in_chans", "num_classes", "out_indices", "output_stride", "pretrained"),
        *("pretrained_cfg", "pretrained_cfg_overlay", "scriptable"),
    }
)
"""Arguments of `timm.create_model` that decide more than sizes."""
MAX_CLASSES = 1 << 16
MAX_BLOCKS = 512

DataRoot = Annotated[Path, AfterValidator(Path.expanduser)]
Size = Annotated[
    tuple[Side, Side],
    BeforeValidator(lambda value: (value, value) if type(value) is int else value),
]
"""Height, width in pixels; one number is both."""
Part = Literal[
    "stem", "stage1", "stage2", "stage3", "stage4", "backbone", "pixel_decoder", "decoder"
]
"""Of a model. The stages of a backbone end at strides 4, 8, 16 and 32; the stem comes before."""
Tracker = Literal[
    "tensorboard",
    "wandb",
    "comet_ml",
    "mlflow",
    "aim",
    "clearml",
    "dvclive",
    "swanlab",
    "trackio",
]
"""Programs that record a run; all but TensorBoard through accelerate."""
SemanticMetric = Literal["miou", "fwiou", "macc", "pacc"]
PanopticMetric = Literal[
    "pq",
    "sq",
    "rq",
    "pq_things",
    "sq_things",
    "rq_things",
    "pq_stuff",
    "sq_stuff",
    "rq_stuff",
]


ClassWeights = Annotated[
    Annotated[dict[Name, NonNegative], Field(max_length=MAX_CLASSES), Tag("(by name)")]
    | Annotated[tuple[NonNegative, ...], Field(max_length=MAX_CLASSES), Tag("(in order)")],
    Discriminator(lambda value: "(by name)" if isinstance(value, dict) else "(in order)"),
]
"""Tells the two apart by itself, for errors of the one that was meant."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


_PerChannel = Field(min_length=1, max_length=MAX_BANDS)


class BackboneConfig(Section):
    """A timm `features_only` model whose strides 4, 8, 16, 32 feed the pixel decoder."""

    name: Annotated[str, Field(max_length=200)] = "resnet50.tv_in1k"
    """A timm model, such as `resnet50.tv_in1k` or `swin_tiny_patch4_window7_224`."""
    pretrained: bool = True
    """Start training from timm's ImageNet weights in `train`; building never downloads. Without,
    initial values are timm's, not the official ones: see docs/facts.md.
    """
    weights: Path | None = None
    """A local file with the backbone's weights, or `package:NAME/FILE`, a file in an installed
    Python package; wins over the download.
    """
    frozen_norm: bool = True
    """Replace BatchNorm with FrozenBatchNorm (the official choice for every ResNet)."""
    drop_path: Fraction = 0.0
    """Probability that a residual branch of the last block is skipped (stochastic depth)."""
    multi_grid: tuple[Dilation, Dilation, Dilation] | None = None
    """Dilations of the three blocks of the last ResNet stage (R101c: 1, 2, 4)."""
    options: Annotated[dict[Name, Option], Field(max_length=32)] = {}
    """Sizes other than the named model's, in timm's words: `layers` and `channels` of a ResNet,
    `embed_dim`, `depths`, `num_heads`, `window_size` and `mlp_ratio` of a Swin.
    """

    @field_validator("options")
    @classmethod
    def _sizes_only(cls, options: dict[str, Option]) -> dict[str, Option]:
        for name in _OURS_TO_SET & set(options):
            raise ValueError(f"{name} is no size of a backbone")
        for name, most in (("layers", MAX_BLOCKS), ("depths", MAX_BLOCKS), ("window_size", 64)):
            given = options.get(name, 0)
            total = sum(given) if isinstance(given, tuple) else given
            if total > most:
                raise ValueError(f"{name} of {shown(given)} are more than {most}")
        return options


class PixelDecoderConfig(Section):
    """The FPN of the paper; `encoder_layers: 6` adds the transformer encoder ("+ 6 Enc")."""

    channels: Channels = 256
    """Channels of the feature pyramid."""
    mask_channels: Channels = 256
    """Channels of the pixel features, and so of the mask embeddings."""
    groups: Channels = 32
    """Groups of its GroupNorm layers; must divide the channels."""
    encoder_layers: Layers = 0
    """Transformer encoder layers over the coarsest map; 6 in the "+ 6 Enc" models."""


class DecoderConfig(Section):
    """The transformer decoder over the coarsest map, and its heads."""

    queries: Wide = 100
    """N: how many segments the model proposes for an image."""
    channels: Channels = 256
    """Width of the queries."""
    heads: Channels = 8
    """Attention heads; must divide the channels."""
    feedforward: Wide = 2048
    """Hidden width of the feed-forward layers."""
    layers: Annotated[Layers, Field(gt=0)] = 6
    """Decoder layers; the loss is taken after each of them."""
    dropout: Fraction = 0.1
    """Probability that an activation is dropped in training."""
    enforce_input_projection: bool = False
    """Project the backbone's features even if they have the decoder's width already."""


class ModelConfig(Section):
    """The network, and how it wants its pixels."""

    architecture: Literal["maskformer", "per_pixel", "per_pixel_plus"] = "maskformer"
    """Mask classification, or one of the paper's two per-pixel baselines."""
    num_classes: Annotated[int, Field(gt=0, le=MAX_CLASSES)] | None = None
    """K, without "no object"; taken from the data set when left out."""
    backbone: BackboneConfig = BackboneConfig()
    """What turns an image into feature maps."""
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()
    """What turns feature maps into pixel features."""
    decoder: DecoderConfig = DecoderConfig()
    """What turns the coarsest map into classes and mask embeddings."""
    size_divisibility: Annotated[int, Field(ge=0, le=1 << 12)] = 32
    """Inputs are padded to a multiple of this; 0 pads to the batch maximum only (at least 32).
    Officially 0 in COCO panoptic models and in per-pixel models on a ResNet.
    """
    pixel_mean: Annotated[tuple[Finite, ...], _PerChannel] = PIXEL_MEAN
    """Per channel of the input, in units of 0..255. How many there are is how many channels the
    backbone takes; left out, 127.5 each where `data.channels` is not 3.
    """
    pixel_std: Annotated[tuple[Positive, ...], _PerChannel] = PIXEL_STD
    """As many as `pixel_mean`."""

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.pixel_mean) != len(self.pixel_std):
            raise ValueError(
                f"pixel_mean has {len(self.pixel_mean)} values and pixel_std "
                f"{len(self.pixel_std)}, expected one of each per channel"
            )
        return self

    @property
    def num_channels(self) -> int:
        """Of the input."""
        return len(self.pixel_mean)


class CriterionConfig(Section):
    """Weights of the matching cost and of the loss (paper §3.3, appendix A)."""

    class_weight: NonNegative = 1.0
    """Of the classification term, in the matching cost and in the loss."""
    mask_weight: NonNegative = 20.0
    """Of the focal term, in both."""
    dice_weight: NonNegative = 1.0
    """Of the dice term, in both."""
    no_object_weight: NonNegative = 0.1
    """Of queries without a segment, in the cross-entropy."""
    alpha: Finite = 0.25
    """Share of the focal loss that positive pixels have; negative: no such shares."""
    gamma: NonNegative = 2.0
    """Exponent by which the focal loss discounts easy pixels."""
    class_weights: ClassWeights | None = None
    """Weights of the classes in the cross-entropy: one per class, or by name, the others at 1. They
    weigh no matching cost, as in the official code.
    """
    class_loss: Literal["per_process", "over_all"] = "per_process"
    """What the class loss is the mean of: the queries of each process, as officially, where a
    segment weighs more on processes that have few; or those of all, so that several processes learn
    what one would.
    """
    matching: Literal["bipartite", "fixed"] = "bipartite"
    """Which query learns a segment: that of least cost, or that of its class, of as many queries as
    classes (MaskFormer-fixed, paper table 4).
    """


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


class DataSection(Section):
    augmentation: Augmentation = SemanticAugmentation()
    """What is done to training images at random."""
    test_short_side: Side | None = 512
    """Evaluation resizes the short side to this; left empty, images keep their size."""
    test_max_side: Side | None = 2048
    """Bound of the long side in evaluation, in pixels; null: none."""
    channels: ImageChannels = 3
    """3: RGB; grey is repeated, opacity left out, CMYK converted. Another number: images have
    exactly so many bands. A list such as [4, 3, 2]: the bands that are taken, counted from 1.
    """
    value_range: tuple[Finite, Finite] | None = None
    """The values that become 0 and 255, such as [0, 4095] for 12 bits; all others lie between or
    are clipped. Left out, 8 and 16 bits are read by their depth, and images that would lose most of
    their levels are refused.
    """
    percentiles: tuple[Percent, Percent] | None = None
    """In place of `value_range`: those of each band of each image, such as [2, 98]."""
    exif_orientation: Literal["apply", "ignore"] | None = None
    """Whether labels were drawn on the image as its orientation tag turns it (`apply`), or as it is
    stored (`ignore`: nothing is turned). Left out, images are turned, and where the sizes leave
    open what holds for the labels, they are refused.
    """
    max_pixels: PositiveInt = MAX_PIXELS
    """Larger images are refused; raise it only for files that can be trusted."""

    @field_validator("augmentation", mode="before")
    @classmethod
    def _usual_kind(cls, value: Any) -> Any:
        """One value of it given on the command line needs no kind."""
        return {"kind": "semantic", **value} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.value_range is not None and self.percentiles is not None:
            raise ValueError("value_range and percentiles are both given, expected one of them")
        for name, limits in (("value_range", self.value_range), ("percentiles", self.percentiles)):
            if limits is not None and limits[0] >= limits[1]:
                raise ValueError(f"{name} must be [low, high], got {list(limits)}")
        return self

    @property
    def num_channels(self) -> int:
        """Of the images as the network gets them."""
        return self.channels if isinstance(self.channels, int) else len(self.channels)


class ShapesConfig(DataSection):
    """Images drawn by the program itself: nothing to download."""

    format: Literal["shapes"] = "shapes"
    """How the data lies: `folder`, `coco_panoptic` or `coco_instances`; `shapes` are drawn."""
    image_size: Size = (96, 96)
    """Height and width of the images, in pixels."""
    train_images: PositiveInt = 2000
    """How many images there are to train on."""
    val_images: PositiveInt = 100
    """How many images there are to evaluate on."""
    seed: Integer = 0
    """Other seeds draw other images."""


Names = Annotated[
    Annotated[
        tuple[Name, ...],
        Field(max_length=MAX_CLASSES),
        Tag("(list)"),
    ]
    | Annotated[Path, Tag("(file)")],
    Discriminator(lambda value: "(file)" if isinstance(value, str | Path) else "(list)"),
]
"""A list, or a text file with one name per line."""
ANY = "*"
"""The rest, whatever it is."""


def _check_label(value: Any) -> int | str:
    """A raw label as the key of a map: digits count as a number, as they do in YAML."""
    if isinstance(value, str) and value.isdecimal() and len(value) < MAX_DIGITS:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value
    if not isinstance(value, str):
        _check_text(value)
        raise ValueError(f"a raw label is a number, a name or a colour, got {shown(value)}")
    return _check_name(value)


def _check_class(value: Any) -> int | str | None:
    if value is None or value == "ignore":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_CLASSES:
        return value
    if not isinstance(value, str):
        _check_text(value)
        raise ValueError(f"a class is a name, a number or null, got {shown(value)}")
    return _check_name(value)


_ANY_TEXT = WithJsonSchema({"type": "string"})
LabelMap = Annotated[
    dict[
        Annotated[int | str, PlainValidator(_check_label), _ANY_TEXT],
        Annotated[int | str | None, PlainValidator(_check_class), _ANY_TEXT],
    ],
    Field(min_length=1, max_length=MAX_CLASSES),
]
Share = Annotated[float, Field(gt=0, lt=1), Tag("(share)")]
"""Of the training images: they leave `train` and are the other split."""


def _split_or_share(value: Any) -> str:
    return "(share)" if isinstance(value, int | float) else "(split)"


class FilesSection(DataSection):
    """Images that lie on the disk."""

    root: DataRoot
    """The data set's folder; the other paths are relative to it."""
    seed: Integer = 0
    """Of the choice where `val` is a share; names decide, whatever their order."""


class FolderSplit(Section):
    """One split: folders that mirror each other, relative to the data root."""

    images: Path
    """Folder of the images, relative to `data.root`."""
    labels: Path
    """Folder of the label files; it mirrors that of the images."""
    objects: Path | None = None
    """A folder of files that number the objects of each image (VOC's `SegmentationObject`): they
    tell the objects of `things` apart.
    """
    list: Path | None = None
    """A text file, relative to the data root, whose lines begin with an image's name (VOC's
    `ImageSets`), with or without suffix; left out, all images count.
    """
    exclude: Annotated[tuple[str, ...], OneOrMore, Field(max_length=1000)] = ()
    """Images to leave out: patterns such as `*_old.jpg`, for names below `images`."""


class FolderConfig(FilesSection):
    """A folder of images and a folder of label PNGs (8 or 16 bit), one value per class."""

    format: Literal["folder"] = "folder"
    """How the data lies: `folder`, `coco_panoptic` or `coco_instances`; `shapes` are drawn."""
    train: FolderSplit
    """What is trained on."""
    val: Annotated[Annotated[FolderSplit, Tag("(split)")] | Share, Discriminator(_split_or_share)]
    """A split as `train`, or a share such as 0.1 of the images of `train`."""
    image_suffix: Annotated[tuple[str, ...], OneOrMore, Field(min_length=1, max_length=100)] = (
        "*",
    )
    """Of the files that are images, one or several, in any case of letters; `"*"`: every type that
    can be read.
    """
    label_suffix: str = ".png"
    """Replaces the image suffix to give the name of the label file, and of that of objects, in any
    case of letters.
    """
    classes: Names | None = None
    """The names of the model's classes, or a text file with one per line; left out, they are those
    of `label_map`, or else the labels found are numbered.
    """
    colors: Annotated[tuple[tuple[Byte, Byte, Byte], ...], Field(max_length=MAX_CLASSES)] | None = (
        None
    )
    """RGB per class for pictures; left out, those of palette label files serve, else a palette."""
    things: Annotated[tuple[Name, ...], OneOrMore, Field(max_length=MAX_CLASSES)] = ()
    """The classes whose objects are told apart. With `objects`, left out, all but the background.
    """
    label_offset: Integer = 0
    """class = value - label_offset, where there is no `label_map`."""
    ignore: Annotated[tuple[Integer, ...], OneOrMore, Field(max_length=MAX_CLASSES)] = (255,)
    """Raw values of pixels that belong to no class."""
    label_map: LabelMap | None = None
    """Raw value: class, to merge, drop or pick classes, such as `{0: background, 255: crack}`. A
    key is a raw value, a colour of RGB labels (`"#ff0000"`) or a name in `label_names`; `"*"` is
    whatever the map and `ignore` do not list, which is refused otherwise. A class is a name in
    `classes`, its number, or null (or `ignore`): void. What the map says wins over `ignore`.
    """
    label_names: Names | None = None
    """The names of the raw values from `label_offset` on, or a text file: keys of `label_map`. Left
    out, the classes of a base that has no `label_map`.
    """


class CocoPanopticSplit(Section):
    """One split, relative to the data root."""

    images: Path
    """Folder of the images."""
    panoptic: Path
    """Folder of the PNGs whose colours are segment ids."""
    annotations: Path
    """The JSON file with `images`, `annotations` and `categories`."""
    semantic_labels: Path | None = None
    """Folder of label PNGs (values 0 to K-1 in the order of the categories, 255: void), by which
    mIoU is measured, officially for ADE20K. Where it does not exist, the panoptic PNGs serve.
    """


class CocoPanopticConfig(FilesSection):
    """COCO panoptic format: images, id-coloured PNGs and a JSON file per split."""

    format: Literal["coco_panoptic"] = "coco_panoptic"
    """How the data lies: `folder`, `coco_panoptic` or `coco_instances`; `shapes` are drawn."""
    train: CocoPanopticSplit
    """What is trained on."""
    val: Annotated[
        Annotated[CocoPanopticSplit, Tag("(split)")] | Share, Discriminator(_split_or_share)
    ]
    """A split as `train`, or a share such as 0.1 of the images of `train`."""
    categories: Path | None = None
    """A categories JSON, for annotation files that carry none."""
    label_map: LabelMap | None = None
    """Category (its name or id): class, to merge, drop or pick categories, such as
    `{car: vehicle, bus: vehicle, "*": null}`. `"*"` is every category that the map does not list,
    which is refused otherwise; null (or `ignore`) is void. The classes are the names on the right,
    in this order.
    """


class CocoInstancesSplit(Section):
    """One split, relative to the data root."""

    images: Path
    """Folder of the images."""
    annotations: Path
    """The JSON file with `images`, `annotations` and `categories`."""


class CocoInstancesConfig(FilesSection):
    """COCO instances format: images, and a JSON file of polygons or RLE masks per split. Where
    objects overlap, the one that the JSON lists later lies on top, and all lie over crowds.
    """

    format: Literal["coco_instances"] = "coco_instances"
    """How the data lies: `folder`, `coco_panoptic` or `coco_instances`; `shapes` are drawn."""
    train: CocoInstancesSplit
    """What is trained on."""
    val: Annotated[
        Annotated[CocoInstancesSplit, Tag("(split)")] | Share, Discriminator(_split_or_share)
    ]
    """A split as `train`, or a share such as 0.1 of the images of `train`."""
    background: Name | None = "background"
    """The class (stuff) of pixels outside of all objects: a category of this name, spelt with or
    without underscores, or else a class of its own before the others. null makes them void.
    """
    label_map: LabelMap | None = None
    """Category (its name or id): class, as in `coco_panoptic`; the name of the background makes
    a category part of it.
    """


DataConfig = Annotated[
    ShapesConfig | FolderConfig | CocoPanopticConfig | CocoInstancesConfig,
    Field(discriminator="format"),
]


class TrainConfig(Section):
    """Optimiser, schedule and bookkeeping."""

    steps: PositiveInt = 160_000
    """Optimiser updates of the whole run, after accumulation."""
    epochs: Positive | None = None
    """The length of training in passes over the training images, instead of `steps`."""
    batch_size: PositiveInt = 16
    """Images per step, over all processes and accumulated parts together."""
    accumulate: PositiveInt = 1
    """Forward-backward passes per step; the batch is split into this many parts, which count as
    processes do: the mask losses are divided by the mean number of segments of all parts. With 64,
    one GPU takes the 64 images of the paper's COCO recipes one by one, without padding, as 64 did.
    """
    lr: Positive = 1e-4
    """Learning rate of AdamW at the start of the schedule (after the warm-up)."""
    weight_decay: NonNegative = 1e-4
    """Decoupled weight decay; norms and embeddings have none, as officially."""
    backbone_lr_multiplier: NonNegative = 0.1
    """The backbone's learning rate in terms of `lr`."""
    clip_norm: Positive = 0.01
    """Bound of the gradient's norm over all parameters."""
    schedule: Literal["poly", "step", "cosine"] = "poly"
    """How the learning rate falls: as a polynomial or half a cosine to 0, or at `milestones`."""
    poly_power: Positive = 0.9
    """Exponent of the `poly` schedule."""
    milestones: Annotated[tuple[PositiveInt, ...], OneOrMore, Field(max_length=1000)] = ()
    """Steps of the `step` schedule."""
    milestone_factor: Positive = 0.1
    """What the learning rate is multiplied by at each milestone."""
    warmup_steps: NonNegativeInt = 0
    """Steps in which the learning rate rises linearly to its scheduled value."""
    warmup_factor: NonNegative = 1e-6
    """Where that rise starts, in terms of the scheduled value."""
    freeze: Annotated[tuple[Part, ...], OneOrMore] = ()
    """Parts of the model that do not learn: `backbone`, or its `stem` and `stage1` to `stage4`;
    `pixel_decoder`, `decoder`. Their norm layers and dropout behave as in evaluation.
    """
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; the average is what is
    evaluated and saved as the model.
    """
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of the model; the criterion sums in fp32 in any case."""
    workers: Annotated[int, Field(ge=0, le=1 << 12)] = 4
    """Processes that read and augment images, per training process."""
    seed: Integer = 0
    """Of the initial weights, the order of the images and their augmentation."""
    log_every: PositiveInt = 20
    """Steps between two log lines."""
    evaluate_every: PositiveInt = 5000
    """Steps between two evaluations; the last step is always evaluated."""
    checkpoint_every: PositiveInt = 5000
    """Steps between two checkpoints; there is one before each evaluation, too."""
    keep: PositiveInt = 1
    """How many of the newest checkpoints are kept, besides the best."""
    best_metric: SemanticMetric | PanopticMetric | None = None
    """What the best checkpoint is best in; left out, mIoU, or PQ where only that is measured. The
    paper reports the last checkpoint (`checkpoints/last`), not the best.
    """
    patience: PositiveInt | None = None
    """Stop early after this many evaluations in a row without a better `best_metric`."""
    trackers: Annotated[tuple[Tracker, ...], OneOrMore] = ("tensorboard",)
    """Who records figures, such as `[tensorboard, wandb]`; all but TensorBoard need their package.
    """
    log_folder: Path | None = None
    """Where TensorBoard and other trackers write; left out, `tensorboard/` in the run folder."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError("steps and epochs are both given, expected one of them")
        return self

    @model_serializer(mode="wrap")
    def _serialize(self, to_values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out the default of `steps` where `epochs` counts: no recipe may hold both."""
        values: dict[str, Any] = to_values(self)
        if self.epochs is not None:
            del values["steps"]
        return values


class ViewsConfig(Section):
    """Test-time augmentation (`--tta`): an image in several sizes, and their mirror images; the
    class scores of all of them are averaged.
    """

    scales: Annotated[
        tuple[Annotated[Positive, Field(le=64)], ...],
        OneOrMore,
        Field(min_length=1, max_length=100),
    ] = (0.5, 0.75, 1, 1.25, 1.5, 1.75)
    """In terms of `data.test_short_side`. The official sizes of ADE20K are these."""
    short_sides: (
        Annotated[tuple[Side, ...], OneOrMore, Field(min_length=1, max_length=100)] | None
    ) = None
    """Short sides in pixels, in place of `scales`."""
    max_side: Side | None = None
    """Bound of the long side in pixels; left out, `data.test_max_side` times the largest scale, or
    none with `short_sides`.
    """
    flip: bool = True
    """Average the mirror image of each size, too."""
    from_original: bool = False
    """Resize the image as it was read, which keeps details in sizes above the test size. Officially
    each size is made of the image that was already resized to the test size.
    """

    @model_validator(mode="after")
    def _one_kind_of_size(self) -> Self:
        if self.short_sides is not None and "scales" in self.model_fields_set:
            raise ValueError(
                "scales and short_sides are both given, expected one of them: short_sides=null "
                "makes room for scales"
            )
        return self

    @model_serializer(mode="wrap")
    def _serialize(self, to_values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out `scales` where `short_sides` counts: no recipe may hold both."""
        values: dict[str, Any] = to_values(self)
        if self.short_sides is not None:
            del values["scales"]
        return values


class EvalConfig(Section):
    """What evaluation measures and the thresholds of panoptic inference (paper §3.4)."""

    semantic: bool = True
    """Measure mIoU and the like."""
    panoptic: bool = False
    """Measure PQ; needs data that tells objects apart."""
    object_mask_threshold: Fraction = 0.8
    """Queries of a lower class probability give no segment."""
    overlap_threshold: Fraction = 0.8
    """Segments that keep less than this share of their mask after all overlaps are dropped."""
    resize_logits: bool = False
    """Resize mask logits, not scores, to the original size (the official order where panoptic is
    on).
    """
    all_crowds: bool = False
    """PQ excuses predictions on any crowd of their class; officially only on the last one that the
    annotation of an image lists.
    """
    batch_size: PositiveInt = 1
    """Images read together. Those of one padded size also run together: results do not depend on
    the batch size.
    """
    tta: ViewsConfig = ViewsConfig()
    """What `--tta` averages over."""
    all_classes: bool = False
    """Tables of more than 30 classes also show those that do not occur."""
    pictures: NonNegativeInt = 8
    """How many predictions are drawn for TensorBoard and the run folder."""

    @model_validator(mode="after")
    def _measures_something(self) -> EvalConfig:
        if not (self.semantic or self.panoptic):
            raise ValueError("semantic and panoptic are both off, expected at least one of them")
        return self


SMALLEST_TILE = 32
"""Pixels; the coarsest map of a backbone has one for each of these squares."""


class PredictConfig(Section):
    """How `maskformer predict` looks at large images and draws what it finds."""

    tile: Annotated[Side, Field(ge=SMALLEST_TILE)] | None = None
    """Side in pixels of the tiles in which larger images are predicted (semantic mode only). Each
    is an image of its own for `data.test_short_side`: tiles of that side keep every detail, larger
    ones are shrunk and see more of the image at once.
    """
    tile_overlap: Annotated[float, Field(ge=0, le=0.75)] = 0.25
    """Share of a tile's side that neighbours have in common at least; there their class scores are
    blended.
    """
    opacity: Fraction = 0.6
    """Of the colours over the image: 0 shows the image alone, 1 the colours alone."""
    picture_format: Literal["auto", "png", "jpg", "webp"] = "auto"
    """Of the overlays; `auto` is PNG up to four million pixels and JPEG above."""


class Config(Section):
    model: ModelConfig = ModelConfig()
    """The network."""
    criterion: CriterionConfig = CriterionConfig()
    """The loss."""
    data: DataConfig
    """Images, labels and what is done to them."""
    train: TrainConfig = TrainConfig()
    """The training run."""
    eval: EvalConfig = EvalConfig()
    """What evaluation measures."""
    predict: PredictConfig = PredictConfig()
    """How `maskformer predict` looks and draws."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_normalisation(cls, values: Any) -> Any:
        """Other channels than RGB have no mean of ImageNet: that of the range serves."""
        if not isinstance(values, Mapping):
            return values
        data, model = values.get("data"), values.get("model", {})
        channels = data.get("channels", 3) if isinstance(data, Mapping) else 3
        count = len(channels) if isinstance(channels, list | tuple) else channels
        if (
            not isinstance(count, int)
            or count == 3
            or not 0 < count <= MAX_BANDS
            or not isinstance(model, Mapping)
            or {"pixel_mean", "pixel_std"} & set(model)
        ):
            return values
        middle = (MIDDLE_LEVEL,) * count
        return {**values, "model": {**model, "pixel_mean": middle, "pixel_std": middle}}

    @model_validator(mode="after")
    def _same_channels(self) -> Self:
        wanted = self.data.num_channels
        if wanted != self.model.num_channels:
            raise ValueError(
                f"data.channels gives images of {wanted} channels, and model.pixel_mean and "
                f"model.pixel_std have {self.model.num_channels} values: give {wanted} of each, or "
                "leave both out"
            )
        return self

    @model_validator(mode="after")
    def _best_metric_is_measured(self) -> Self:
        metric = self.train.best_metric
        for names, measured, switch in (
            (get_args(SemanticMetric), self.eval.semantic, "eval.semantic"),
            (get_args(PanopticMetric), self.eval.panoptic, "eval.panoptic"),
        ):
            if metric in names and not measured:
                raise ValueError(
                    f"train.best_metric is {metric}, which is not measured: {switch} is off"
                )
        return self
