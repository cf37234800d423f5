"""The section of the training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from maskformer.config.schema.fields import (
    IS_NUMBER,
    FilePath,
    NonNegative,
    NonNegativeInt,
    OneOrMore,
    Positive,
    PositiveInt,
    Section,
    Seed,
)
from maskformer.config.schema.model import Part

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
InstanceMetric = Literal["ap", "ap50", "ap75"]


class TrainConfig(Section):
    """Optimiser, schedule and bookkeeping."""

    steps: PositiveInt = 160_000
    """Optimiser updates of the whole run, after accumulation."""
    epochs: Annotated[float, Field(gt=0, le=1e6), IS_NUMBER] | None = None
    """Length of training in passes over the training images, instead of `steps`."""
    batch_size: PositiveInt = 16
    """Images per step, over all processes and accumulated parts together."""
    accumulate: PositiveInt = 1
    """Forward-backward passes per step; the batch is split into this many parts, which count as
    processes do: the mask losses are divided by the mean number of segments of all parts. With 64,
    one GPU processes the 64 images of the paper's COCO recipes one by one, without padding, as the
    paper's 64 GPUs did.
    """
    group_by_aspect: bool = True
    """Each batch of a process holds either images that are wider than high, or only others, which
    reduces padding, as in the official code. The sizes of all images are read at the start, except
    with `format: huggingface`, whose images are not grouped. Sizes are not read where grouping
    changes nothing: with batches of one image, or images of one size.
    """
    lr: Positive = 1e-4
    """Learning rate of AdamW at the start of the schedule (after the warm-up)."""
    weight_decay: NonNegative = 1e-4
    """Decoupled weight decay; norms and embeddings have none, as in the official code."""
    backbone_lr_multiplier: NonNegative = 0.1
    """The backbone's learning rate as a multiple of `lr`."""
    clip_norm: Positive = 0.01
    """Bound of the gradient's norm over all parameters."""
    schedule: Literal["poly", "step", "cosine"] = "poly"
    """How the learning rate falls: as a polynomial or half a cosine to 0, or by steps at
    `milestones`.
    """
    poly_power: Positive = 0.9
    """Exponent of the `poly` schedule."""
    milestones: Annotated[tuple[PositiveInt, ...], OneOrMore, Field(max_length=1000)] = ()
    """Steps of the `step` schedule."""
    milestone_factor: Positive = 0.1
    """Factor applied to the learning rate at each milestone."""
    warmup_steps: NonNegativeInt = 0
    """Steps in which the learning rate rises linearly to its scheduled value."""
    warmup_factor: NonNegative = 1e-6
    """Start of that rise, as a multiple of the scheduled value."""
    freeze: Annotated[tuple[Part, ...], OneOrMore] = ()
    """Frozen parts of the model: `backbone`, or its `stem` and `stage1` to `stage4`;
    `pixel_decoder`, `decoder`. Their norm layers and dropout behave as in evaluation.
    """
    ema: Annotated[float, Field(gt=0, lt=1), IS_NUMBER] | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; the average is
    evaluated and saved as the model.
    """
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Autocast of the model; the criterion always sums in fp32. `auto` is bf16 if the machine
    supports it: GPUs of compute capability 8.0 or more, CPUs with AVX512-BF16 or AMX.
    """
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Layout of images and convolutions in memory; `auto` is `channels_last` unless the backbone is
    a Swin. Results are the same up to rounding.
    """
    compile: bool = False
    """Compile backbone, pixel decoder and decoder with `torch.compile`, which takes a few minutes
    at the start, and again for each new crop size. Evaluations are not compiled. On a CPU, steps
    take about as long as without (ResNet-50 1.04 to 1.12, Swin-T 0.97 to 1.03 times) and 0.6 to
    1.0 of the memory, but those of a float32 Swin on an AMD processor with AVX-512 1.4 times as
    long.
    """
    shard: bool = False
    """Divide parameters, gradients and the optimiser's moments among the processes (FSDP2), instead
    of keeping all in each, for models that leave too little memory on a GPU. Checkpoints are the
    same. Cannot be combined with `ema`, `compile` or fp16; one process has nothing to divide.
    """
    workers: Annotated[int, Field(ge=0, le=1 << 12), IS_NUMBER] = 4
    """Processes that read and augment images, per training process; at most one for each CPU that
    it may use.
    """
    seed: Seed = 0
    """Seed of the initial weights, the order of the images and their augmentation."""
    log_every: PositiveInt = 20
    """Steps between two log lines."""
    evaluate_every: PositiveInt = 5000
    """Steps between two evaluations; the last step is always evaluated."""
    checkpoint_every: PositiveInt = 5000
    """Steps between two checkpoints; one is also saved before each evaluation."""
    keep: PositiveInt = 1
    """How many of the newest checkpoints are kept, besides the best."""
    best_metric: SemanticMetric | PanopticMetric | InstanceMetric | None = None
    """The metric that selects the best checkpoint. Default: mIoU if it is measured, else PQ, else
    AP. The paper reports the last checkpoint (`checkpoints/last`), not the best.
    """
    patience: PositiveInt | None = None
    """Stop early after this many evaluations in a row without a better `best_metric`."""
    trackers: Annotated[tuple[Tracker, ...], OneOrMore] = ("tensorboard",)
    """Programs that record metrics, such as `[tensorboard, wandb]`; all but TensorBoard need their
    package.
    """
    verify_kernels: PositiveInt | None = None
    """Every this many steps, plain PyTorch also computes the criterion and its gradients; the next
    log line records the difference (`kernel_loss_error`, `kernel_gradient_error`).
    """
    process_timeout: Annotated[float, Field(gt=0, le=1e7), IS_NUMBER] = 600
    """Seconds after which processes that train together give up on one that hangs."""
    log_folder: FilePath | None = None
    """Where TensorBoard and other trackers write. Default: `tensorboard/` in the run folder."""

    @model_validator(mode="after")
    def _what_shards(self) -> TrainConfig:
        wanted = {
            "ema": self.ema is not None,
            "compile": self.compile,
            "precision: fp16": self.precision == "fp16",
        }
        conflicts = [name for name, there in wanted.items() if there]
        if self.shard and conflicts:
            raise ValueError(
                f"shard cannot be combined with {', '.join(conflicts)}: remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError("steps and epochs are both given, expected one of them")
        return self

    @model_serializer(mode="wrap")
    def _serialize(self, to_values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit the default of `steps` if `epochs` is set, because a recipe cannot have both."""
        values: dict[str, Any] = to_values(self)
        if self.epochs is not None:
            del values["steps"]
        return values
