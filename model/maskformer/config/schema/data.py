"""The sections of data sets, one per format."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)

from maskformer.config.schema.augmentation import Augmentation, SemanticAugmentation
from maskformer.config.schema.fields import (
    IS_NUMBER,
    MAX_CLASSES,
    MAX_DIGITS,
    MAX_PIXELS,
    Byte,
    DataRoot,
    FilePath,
    Finite,
    ImageChannels,
    Integer,
    Name,
    OneOrMore,
    Percent,
    PositiveInt,
    Section,
    Seed,
    Side,
    Size,
    Suffix,
    check_name,
    check_text,
)
from maskformer.system.documents import shown


class DataSection(Section):
    augmentation: Augmentation = SemanticAugmentation()
    """Random augmentation of training images."""
    test_short_side: Side | None = 512
    """Evaluation resizes the short side to this; null: images keep their size."""
    test_max_side: Side | None = 2048
    """Bound of the long side in evaluation, in pixels; null: none."""
    channels: ImageChannels = 3
    """3: RGB; grey is repeated, alpha dropped, CMYK converted. Another number: images must have
    exactly that many bands. A list such as [4, 3, 2]: the bands to read, counted from 1.
    """
    value_range: tuple[Finite, Finite] | None = None
    """The values that become 0 and 255, such as [0, 4095] for 12 bits; values between them are
    scaled, others clipped. By default, 8 and 16 bits are read by their depth, and images that would
    lose most of their levels are rejected.
    """
    percentiles: tuple[Percent, Percent] | None = None
    """Instead of `value_range`: percentiles of each band of each image, such as [2, 98]."""
    exif_orientation: Literal["apply", "ignore"] | None = None
    """Whether labels were drawn on the image as rotated by its orientation tag (`apply`) or as
    stored (`ignore`: nothing is rotated). By default, images are rotated, and rejected if the sizes
    do not show which of the two holds for the labels.
    """
    max_pixels: PositiveInt = MAX_PIXELS
    """Larger images are rejected; raise it only for files that you trust."""

    @field_validator("augmentation", mode="before")
    @classmethod
    def _usual_kind(cls, value: Any) -> Any:
        """Set the default kind, so that a single value can be given on the command line."""
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
        """The number of channels of the network's input."""
        return self.channels if isinstance(self.channels, int) else len(self.channels)


class ShapesConfig(DataSection):
    """Images drawn by the program itself: nothing to download."""

    format: Literal["shapes"] = "shapes"
    """The format of the data: `folder`, `coco_panoptic`, `coco_instances`, `huggingface` or
    `webdataset`; `shapes` are generated images.
    """
    image_size: Size = (96, 96)
    """Height and width of the images, in pixels."""
    train_images: PositiveInt = 2000
    """Number of training images."""
    val_images: PositiveInt = 100
    """Number of validation images."""
    seed: Seed = 0
    """Other seeds generate other images."""


Names = Annotated[
    Annotated[
        tuple[Name, ...],
        Field(max_length=MAX_CLASSES),
        Tag("(list)"),
    ]
    | Annotated[FilePath, Tag("(file)")],
    Discriminator(lambda value: "(file)" if isinstance(value, str | Path) else "(list)"),
]
"""A list of names, or a text file with one name per line."""
ANY = "*"
"""The key of a label map for all other values."""


def _check_label(value: Any) -> int | str:
    """Validate a raw label as the key of a map. Digits are converted to a number, as in YAML."""
    if isinstance(value, str) and value.isdecimal() and len(value) < MAX_DIGITS:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value
    if not isinstance(value, str):
        check_text(value)
        raise ValueError(f"a raw label is a number, a name or a colour, got {shown(value)}")
    return check_name(value)


def _check_class(value: Any) -> int | str | None:
    if value is None or value == "ignore":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_CLASSES:
        return value
    if not isinstance(value, str):
        check_text(value)
        raise ValueError(f"a class is a name, a number or null, got {shown(value)}")
    return check_name(value)


def _check_keys(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Check that no two keys are the same raw label, of which the map would keep only the last."""
    labels = handler(value)
    given: dict[int | str, Any] = {}
    for key in value if len(labels) < len(value) else ():
        label = _check_label(key)
        if label in given:
            raise ValueError(
                f"the keys {shown(given[label])} and {shown(key)} are one raw label, expected it "
                "once"
            )
        given[label] = key
    return labels


_ANY_TEXT = WithJsonSchema({"type": "string"})
LabelMap = Annotated[
    dict[
        Annotated[int | str, PlainValidator(_check_label), _ANY_TEXT],
        Annotated[int | str | None, PlainValidator(_check_class), _ANY_TEXT],
    ],
    Field(min_length=1, max_length=MAX_CLASSES),
    WrapValidator(_check_keys),
]
Share = Annotated[float, Field(gt=0, lt=1), IS_NUMBER, Tag("(share)")]
"""The fraction of the training images that is moved to the other split."""


def _split_or_share(value: Any) -> str:
    return "(share)" if isinstance(value, int | float) else "(split)"


class FilesSection(DataSection):
    """Images stored on disk."""

    root: DataRoot
    """The data set's folder; the other paths are relative to it."""
    seed: Integer = 0
    """Seed of the split if `val` is a share; it depends on the file names, not on their order."""


class PixelLabels(FilesSection):
    """Images with a value per pixel, and the class of each value."""

    classes: Names | None = None
    """The names of the model's classes, or a text file with one per line. Default: those of
    `label_map`; without it, the labels found are numbered.
    """
    colors: Annotated[tuple[tuple[Byte, Byte, Byte], ...], Field(max_length=MAX_CLASSES)] | None = (
        None
    )
    """RGB colour of each class in pictures. Default: those of palette label files, else a built-in
    palette.
    """
    label_offset: Integer = 0
    """class = value - label_offset, if there is no `label_map`."""
    ignore: Annotated[tuple[Integer, ...], OneOrMore, Field(max_length=MAX_CLASSES)] = (255,)
    """Raw values of pixels that belong to no class."""
    label_map: LabelMap | None = None
    """Maps raw values to classes, to merge, drop or pick classes, such as
    `{0: background, 255: crack}`. A key is a raw value, a colour of RGB labels (`"#ff0000"`) or a
    name in `label_names`; `"*"` is every value that neither the map nor `ignore` lists, which is
    rejected otherwise. A class is a name in `classes`, its number, or null (or `ignore`): void. The
    map takes precedence over `ignore`.
    """
    label_names: Names | None = None
    """The names of the raw values from `label_offset` on, or a text file, for use as keys of
    `label_map`. Default: the classes of a base that has no `label_map`.
    """


class FolderSplit(Section):
    """One split: folders that mirror each other, relative to the data root."""

    images: FilePath
    """Folder of the images, relative to `data.root`."""
    labels: FilePath
    """Folder of the label files, with the same structure as that of the images."""
    objects: FilePath | None = None
    """A folder of files that number the objects of each image (VOC's `SegmentationObject`), to
    distinguish the objects of `things`.
    """
    list: FilePath | None = None
    """A text file, relative to the data root, whose lines begin with an image's name (VOC's
    `ImageSets`), with or without suffix. Default: all images.
    """
    exclude: Annotated[tuple[str, ...], OneOrMore, Field(max_length=1000)] = ()
    """Images to exclude: patterns such as `*_old.jpg`, for names below `images`."""


class ObjectLabels(PixelLabels):
    """Images with a value per pixel, and optionally files that number the objects."""

    things: Annotated[tuple[Name, ...], OneOrMore, Field(max_length=MAX_CLASSES)] = ()
    """The classes whose objects are distinguished. Default with `objects`: all but the background.
    """

    @property
    @abstractmethod
    def splits_with_objects(self) -> tuple[bool, ...]:
        """Whether there are object files, for each separate split, the training split first."""


class FolderConfig(ObjectLabels):
    """A folder of images and a folder of label PNGs (8 or 16 bit), one value per class."""

    format: Literal["folder"] = "folder"
    """The format of the data: `folder`, `coco_panoptic`, `coco_instances`, `huggingface` or
    `webdataset`; `shapes` are generated images.
    """
    train: FolderSplit
    """The training split."""
    val: Annotated[Annotated[FolderSplit, Tag("(split)")] | Share, Discriminator(_split_or_share)]
    """A split like `train`, or a share of the images of `train`, such as 0.1."""
    image_suffix: Annotated[tuple[Suffix, ...], OneOrMore, Field(min_length=1, max_length=100)] = (
        "*",
    )
    """Suffixes of image files, one or several, in upper or lower case; `"*"`: every type that can
    be read.
    """
    label_suffix: Suffix = ".png"
    """Replaces the image suffix to give the names of the label file and of the objects file, in
    upper or lower case. From MATLAB files (`.mat`), the variable `S` is read, as in COCO-Stuff-10K.
    """

    @property
    def splits_with_objects(self) -> tuple[bool, ...]:
        splits = [self.train, self.val] if isinstance(self.val, FolderSplit) else [self.train]
        return tuple(split.objects is not None for split in splits)


class HuggingFaceConfig(PixelLabels):
    """A table of Hugging Face `datasets` with a column of images and a column of label images."""

    format: Literal["huggingface"] = "huggingface"
    """The format of the data: `folder`, `coco_panoptic`, `coco_instances`, `huggingface` or
    `webdataset`; `shapes` are generated images.
    """
    root: DataRoot
    """A folder that `save_to_disk` wrote, or the data set's name on the hub, such as `owner/name`.
    """
    subset: Name | None = None
    """The configuration of a data set on the hub that has several."""
    train: Name = "train"
    """The split to train on."""
    val: Annotated[Annotated[Name, Tag("(split)")] | Share, Discriminator(_split_or_share)] = (
        "validation"
    )
    """The split to evaluate on, or a share of the images of `train`, such as 0.1."""
    image: Name = "image"
    """The column of the images."""
    label: Name = "label"
    """The column of the label images."""


Suffixes = Annotated[tuple[Name, ...], OneOrMore, Field(min_length=1, max_length=100)]
ShardNames = Annotated[tuple[Name, ...], OneOrMore, Field(min_length=1, max_length=1000)]


class WebDatasetConfig(ObjectLabels):
    """WebDataset shards: uncompressed tar files in which `x.jpg` and `x.png` are an image and its
    labels. Members are read directly from the shard, in any order, without unpacking.
    """

    format: Literal["webdataset"] = "webdataset"
    """The format of the data: `folder`, `coco_panoptic`, `coco_instances`, `huggingface` or
    `webdataset`; `shapes` are generated images.
    """
    train: ShardNames
    """The shards to train on, such as `train-{000000..000099}.tar` or `train-*.tar`, or a list."""
    val: Annotated[Annotated[ShardNames, Tag("(split)")] | Share, Discriminator(_split_or_share)]
    """The shards to evaluate on, or a share of the images of `train`, such as 0.1."""
    image: Suffixes = ("jpg", "jpeg")
    """What follows the first dot in an image's name; the first one found in a sample is used."""
    label: Suffixes = ("png",)
    """The same for the labels, such as `seg.png`."""
    objects: Name | None = None
    """The same for the member with the object numbers, like `objects` in `format: folder`."""

    @property
    def splits_with_objects(self) -> tuple[bool, ...]:
        return (self.objects is not None,)

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """The suffixes of each member, in lower case and without a leading dot."""
        settings = {"image": self.image, "label": self.label}
        if self.objects is not None:
            settings["objects"] = (self.objects,)
        return {
            key: tuple(suffix.lower().lstrip(".") for suffix in suffixes)
            for key, suffixes in settings.items()
        }

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        meaning: dict[str, str] = {}
        for key, suffixes in self.members.items():
            for suffix in suffixes:
                if meaning.setdefault(suffix, key) != key:
                    raise ValueError(
                        f"the suffix {suffix} is used for both {meaning[suffix]} and {key}"
                    )
        return self


class CocoPanopticSplit(Section):
    """One split, relative to the data root."""

    images: FilePath
    """Folder of the images."""
    panoptic: FilePath
    """Folder of the PNGs whose colours are segment ids."""
    annotations: FilePath
    """The JSON file with `images`, `annotations` and `categories`."""
    semantic_labels: FilePath | None = None
    """Folder of label PNGs (values 0 to K-1 in the order of the categories, 255: void) with which
    mIoU is measured, as in the official code for ADE20K. If it does not exist, the panoptic PNGs
    are used.
    """


class CocoPanopticConfig(FilesSection):
    """COCO panoptic format: images, id-coloured PNGs and a JSON file per split."""

    format: Literal["coco_panoptic"] = "coco_panoptic"
    """The format of the data: `folder`, `coco_panoptic`, `coco_instances`, `huggingface` or
    `webdataset`; `shapes` are generated images.
    """
    train: CocoPanopticSplit
    """The training split."""
    val: Annotated[
        Annotated[CocoPanopticSplit, Tag("(split)")] | Share, Discriminator(_split_or_share)
    ]
    """A split like `train`, or a share of the images of `train`, such as 0.1."""
    categories: FilePath | None = None
    """A categories JSON, for annotation files that contain none."""
    label_map: LabelMap | None = None
    """Maps categories (names or ids) to classes, to merge, drop or pick categories, such as
    `{car: vehicle, bus: vehicle, "*": null}`. `"*"` is every category that the map does not list,
    which is rejected otherwise; null (or `ignore`) is void. The classes are the names on the right,
    in this order.
    """


class CocoInstancesSplit(Section):
    """One split, relative to the data root."""

    images: FilePath
    """Folder of the images."""
    annotations: FilePath
    """The JSON file with `images`, `annotations` and `categories`."""


class CocoInstancesConfig(FilesSection):
    """COCO instances format: images, and a JSON file of polygons or RLE masks per split. If objects
    overlap, the one listed later in the JSON is on top; all objects are on top of crowds.
    """

    format: Literal["coco_instances"] = "coco_instances"
    """The format of the data: `folder`, `coco_panoptic`, `coco_instances`, `huggingface` or
    `webdataset`; `shapes` are generated images.
    """
    train: CocoInstancesSplit
    """The training split."""
    val: Annotated[
        Annotated[CocoInstancesSplit, Tag("(split)")] | Share, Discriminator(_split_or_share)
    ]
    """A split like `train`, or a share of the images of `train`, such as 0.1."""
    background: Name | None = "background"
    """The class (stuff) of pixels outside all objects: a category of this name, spelt with or
    without underscores, or else a class of its own before the others. null makes them void.
    """
    label_map: LabelMap | None = None
    """Maps categories (names or ids) to classes, as in `coco_panoptic`; mapping a category to the
    name of the background makes it part of the background.
    """


DataConfig = Annotated[
    ShapesConfig
    | FolderConfig
    | CocoPanopticConfig
    | CocoInstancesConfig
    | HuggingFaceConfig
    | WebDatasetConfig,
    Field(discriminator="format"),
]
