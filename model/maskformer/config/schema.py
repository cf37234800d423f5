"""The schema of a recipe: its sections, their defaults and bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
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
MAX_NAME = 1000
# Upper bounds lie far beyond any model that is known, and far below what harms: see `check_size`.
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31)]
Integer = Annotated[int, Field(gt=-(2**63), lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(gt=0, le=1 << 15)]
"""Of an image, in pixels."""
Channels = Annotated[int, Field(gt=0, le=1 << 14)]
Wide = Annotated[int, Field(gt=0, le=1 << 16)]
"""Classes, queries and the like."""
Layers = Annotated[int, Field(ge=0, le=64)]
Dilation = Annotated[int, Field(gt=0, le=64)]


def _check_name(name: str) -> str:
    if len(name) > MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} characters")
    return name


# Not `max_length`: pydantic would refuse the surrogates that stand for bytes that are not UTF-8.
Name = Annotated[str, AfterValidator(_check_name)]
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
Size = tuple[Side, Side]
"""Height, width in pixels."""
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


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


One = BeforeValidator(_as_list)
"""Where a list of names is read, a name alone is a list of one."""
ClassWeights = Annotated[
    Annotated[dict[Name, NonNegative], Field(max_length=MAX_CLASSES), Tag("(by name)")]
    | Annotated[tuple[NonNegative, ...], Field(max_length=MAX_CLASSES), Tag("(in order)")],
    Discriminator(lambda value: "(by name)" if isinstance(value, dict) else "(in order)"),
]
"""Tells the two apart by itself, for errors of the one that was meant."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(Section):
    """A timm `features_only` model whose strides 4, 8, 16, 32 feed the pixel decoder."""

    name: Annotated[str, Field(max_length=200)] = "resnet50.tv_in1k"
    pretrained: bool = True
    """Start training from timm's ImageNet weights in `train`; building never downloads."""
    weights: Path | None = None
    """A local file with the backbone's timm weights; wins over the download."""
    frozen_norm: bool = True
    """Replace BatchNorm with FrozenBatchNorm (the official choice for every ResNet)."""
    drop_path: Fraction = 0.0
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
    mask_channels: Channels = 256
    groups: Channels = 32
    encoder_layers: Layers = 0


class DecoderConfig(Section):
    """The transformer decoder over the coarsest map, and its heads."""

    queries: Wide = 100
    channels: Channels = 256
    heads: Channels = 8
    feedforward: Wide = 2048
    layers: Annotated[Layers, Field(gt=0)] = 6
    dropout: Fraction = 0.1
    enforce_input_projection: bool = False


class ModelConfig(Section):
    architecture: Literal["maskformer", "per_pixel", "per_pixel_plus"] = "maskformer"
    num_classes: Annotated[int, Field(gt=0, le=MAX_CLASSES)] | None = None
    """K, without "no object"; taken from the data set when left out."""
    backbone: BackboneConfig = BackboneConfig()
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    size_divisibility: Annotated[int, Field(ge=0, le=1 << 12)] = 32
    """Inputs are padded to a multiple of this; 0 pads to the batch maximum only (at least 32)."""
    pixel_mean: tuple[Finite, Finite, Finite] = PIXEL_MEAN
    pixel_std: tuple[Positive, Positive, Positive] = PIXEL_STD


class CriterionConfig(Section):
    """Weights of the matching cost and of the loss (paper §3.3, appendix A)."""

    class_weight: NonNegative = 1.0
    mask_weight: NonNegative = 20.0
    dice_weight: NonNegative = 1.0
    no_object_weight: NonNegative = 0.1
    alpha: Finite = 0.25
    gamma: NonNegative = 2.0
    class_weights: ClassWeights | None = None
    """Weights of the classes in the cross-entropy: one per class, or by name, the others at 1. They
    weigh no matching cost, as in the official code.
    """


class SemanticAugmentation(Section):
    """Resize the short side, crop, jitter colours, flip, pad to the crop (paper appendix A)."""

    kind: Literal["semantic"] = "semantic"
    short_sides: Annotated[tuple[Side, ...], Field(max_length=1000)] = (512,)
    max_side: Side | None = None
    crop: Size = (512, 512)
    single_category_max_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    color: bool = True
    flip: bool = True
    pad_to_crop: bool = True
    keep_empty: bool = False
    """Keep segments that were cropped away, as empty masks (official in panoptic training)."""


class PanopticAugmentation(Section):
    """Flip, then resize, half of the time after a resize and a random crop (as DETR does)."""

    kind: Literal["panoptic"] = "panoptic"
    short_sides: Annotated[tuple[Side, ...], Field(max_length=1000)] = tuple(range(480, 801, 32))
    max_side: Side | None = 1333
    crop_short_sides: Annotated[tuple[Side, ...], Field(max_length=1000)] = (400, 500, 600)
    crop_range: Size = (384, 600)
    flip: bool = True
    keep_empty: bool = True
    """Keep segments that were cropped away, as empty masks (official in panoptic training)."""


Augmentation = Annotated[SemanticAugmentation | PanopticAugmentation, Field(discriminator="kind")]


class DataSection(Section):
    augmentation: Augmentation = SemanticAugmentation()
    test_short_side: Side | None = 512
    """Evaluation resizes the short side to this; left empty, images keep their size."""
    test_max_side: Side | None = 2048


class ShapesConfig(DataSection):
    """Images drawn by the program itself: nothing to download."""

    format: Literal["shapes"] = "shapes"
    image_size: Size = (96, 96)
    train_images: PositiveInt = 2000
    val_images: PositiveInt = 100
    seed: Integer = 0


class FolderSplit(Section):
    """One split: two folders that mirror each other, relative to the data root."""

    images: Path
    labels: Path


class FolderConfig(DataSection):
    """A folder of images and a folder of label PNGs (8 or 16 bit), one value per class."""

    format: Literal["folder"] = "folder"
    root: DataRoot
    train: FolderSplit
    val: FolderSplit
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"
    """Replaces the image suffix to give the name of the label file."""
    classes: Annotated[tuple[Name, ...], Field(max_length=MAX_CLASSES)] | Path | None = None
    """Class names, or a text file with one per line; left out, the labels found are numbered."""
    colors: Annotated[tuple[tuple[Byte, Byte, Byte], ...], Field(max_length=MAX_CLASSES)] | None = (
        None
    )
    """RGB per class for pictures; left out, a palette serves."""
    things: Annotated[tuple[Name, ...], Field(max_length=MAX_CLASSES)] = ()
    label_offset: Integer = 0
    """class = value - label_offset."""
    ignore: Annotated[tuple[Integer, ...], Field(max_length=MAX_CLASSES)] = (255,)
    """Raw values of pixels that belong to no class."""


class CocoPanopticSplit(Section):
    """One split, relative to the data root."""

    images: Path
    panoptic: Path
    annotations: Path


class CocoPanopticConfig(DataSection):
    """COCO panoptic format: images, id-coloured PNGs and a JSON file per split."""

    format: Literal["coco_panoptic"] = "coco_panoptic"
    root: DataRoot
    train: CocoPanopticSplit
    val: CocoPanopticSplit
    categories: Path | None = None
    """A categories JSON, for annotation files that carry none."""


DataConfig = Annotated[
    ShapesConfig | FolderConfig | CocoPanopticConfig, Field(discriminator="format")
]


class TrainConfig(Section):
    """Optimiser, schedule and bookkeeping. A step is one optimiser update; `batch_size` counts all
    processes.
    """

    steps: PositiveInt = 160_000
    epochs: Positive | None = None
    """The length of training in passes over the training images, instead of `steps`."""
    batch_size: PositiveInt = 16
    accumulate: PositiveInt = 1
    """Forward-backward passes per step; the batch is split into this many parts. The step takes the
    mean of the parts' losses, each normalised by its own segments.
    """
    lr: Positive = 1e-4
    weight_decay: NonNegative = 1e-4
    backbone_lr_multiplier: NonNegative = 0.1
    clip_norm: Positive = 0.01
    schedule: Literal["poly", "step", "cosine"] = "poly"
    """How the learning rate falls: as a polynomial or half a cosine to 0, or at `milestones`."""
    poly_power: Positive = 0.9
    milestones: Annotated[tuple[PositiveInt, ...], Field(max_length=1000)] = ()
    milestone_factor: Positive = 0.1
    warmup_steps: NonNegativeInt = 0
    warmup_factor: NonNegative = 1e-6
    freeze: Annotated[tuple[Part, ...], One] = ()
    """Parts of the model that do not learn: `backbone`, or its `stem` and `stage1` to `stage4`;
    `pixel_decoder`, `decoder`. Their norm layers and dropout behave as in evaluation.
    """
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; the average is what is
    evaluated and saved as the model.
    """
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: Annotated[int, Field(ge=0, le=1 << 12)] = 4
    seed: Integer = 0
    log_every: PositiveInt = 20
    evaluate_every: PositiveInt = 5000
    checkpoint_every: PositiveInt = 5000
    keep: PositiveInt = 1
    """How many of the newest checkpoints are kept, besides the best."""
    best_metric: SemanticMetric | PanopticMetric | None = None
    """What the best checkpoint is best in; left out, mIoU, or PQ where only that is measured."""
    patience: PositiveInt | None = None
    """Stop early after this many evaluations in a row without a better `best_metric`."""
    trackers: Annotated[tuple[Tracker, ...], One] = ("tensorboard",)
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
        tuple[Annotated[Positive, Field(le=64)], ...], Field(min_length=1, max_length=100)
    ] = (0.5, 0.75, 1, 1.25, 1.5, 1.75)
    """In terms of `data.test_short_side`; the long side is bounded by `data.test_max_side` times
    the largest scale. The official sizes are these.
    """
    flip: bool = True


class EvalConfig(Section):
    """What evaluation measures and the thresholds of panoptic inference (paper §3.4)."""

    semantic: bool = True
    panoptic: bool = False
    object_mask_threshold: Fraction = 0.8
    overlap_threshold: Fraction = 0.8
    resize_logits: bool = False
    """Resize mask logits, not scores, to the original size (the official order where panoptic is
    on).
    """
    batch_size: PositiveInt = 1
    """Images read together. Those of one padded size also run together: results do not depend on
    the batch size.
    """
    tta: ViewsConfig = ViewsConfig()
    all_classes: bool = False
    """Tables of more than 30 classes also show those that do not occur."""
    pictures: NonNegativeInt = 8
    """How many predictions are drawn for TensorBoard and the run folder."""

    @model_validator(mode="after")
    def _measures_something(self) -> EvalConfig:
        if not (self.semantic or self.panoptic):
            raise ValueError("semantic and panoptic are both off, expected at least one of them")
        return self


class Config(Section):
    model: ModelConfig = ModelConfig()
    criterion: CriterionConfig = CriterionConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _best_metric_is_measured(self) -> Config:
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
