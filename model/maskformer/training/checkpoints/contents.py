"""What evaluation, prediction and a new training take from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, field_validator

from maskformer.config.load import changed_values, load_config, override_config
from maskformer.config.schema import MAX_CLASSES, Config, PredictConfig, ShapesConfig, fields
from maskformer.data import DatasetInfo
from maskformer.data.palette import palette
from maskformer.errors import CheckpointError, ConfigError, UsageError
from maskformer.inference.image_processor import ImageProcessor
from maskformer.modeling.base import SegmentationModel
from maskformer.system.documents import check, read_mapping, read_text
from maskformer.system.listing import why_absent
from maskformer.system.version import installed, writer
from maskformer.weights.files import WEIGHT_SUFFIXES
from maskformer.weights.locate import RECIPE, find_local
from maskformer.weights.open import find, is_hub_id, read_class_names

DATASET = "dataset.json"
RUNS = Path("runs")
"""Where `train` puts runs that are given no folder."""
_PREDICTING = {
    "data": (
        *("test_short_side", "test_max_side", "channels", "value_range", "percentiles"),
        *("exif_orientation", "max_pixels"),
    ),
    "eval": (
        *("semantic", "panoptic", "object_mask_threshold", "overlap_threshold", "resize_logits"),
        *("batch_size", "precision", "tta"),
    ),
    "predict": tuple(PredictConfig.model_fields),
}
"""The keys of a recipe that decide what is predicted."""
_PerClass = Field(min_length=1, max_length=MAX_CLASSES)
FORMERLY = {
    "criterion.class_loss": "over_all",
    "data.augmentation.label_resize": "center",
    "train.group_by_aspect": "false",
    "eval.all_crowds": "true",
    "eval.tta.from_original": "true",
}
"""What all runs did before there were these keys, whose defaults are the official values."""


class _Classes(BaseModel):
    """`dataset.json`."""

    classes: Annotated[tuple[fields.Name, ...], _PerClass]
    things: frozenset[fields.NonNegativeInt]
    colors: Annotated[tuple[tuple[fields.Byte, fields.Byte, fields.Byte], ...], _PerClass]
    category_ids: Annotated[tuple[fields.Integer, ...], _PerClass]

    @field_validator("category_ids")
    @classmethod
    def _one_each(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(numbers)) != len(numbers):
            raise ValueError("expected another number for each class")
        return numbers


def resolve_checkpoint(path: Path) -> Path:
    """Accepts a run folder, its `checkpoints` folder, a link or a step folder; returns the step
    folder. Other folders of models and weight files stand for themselves (see `find_local`), and
    `owner/name`, where no such folder is, for a model on the hub.

    Raises:
        CheckpointError: nothing there.
        HubError: it reads like an id on the hub, which cannot be reached or has no such model.
    """
    found = find_local(path)
    if found:
        return found.resolve()
    if not path.exists() and is_hub_id(path):
        return find(path).resolve()
    hint = ""
    if find_local(RUNS / path):
        hint = f"; did you mean {RUNS / path}?"
    elif path.parent != Path() and not path.exists():
        hint = f" ({why_absent(path)})"
    raise CheckpointError(
        f"no checkpoint at {path}{hint}: expected a run folder, one with a config.json, a weight "
        f"file ({', '.join(sorted(WEIGHT_SUFFIXES))}), or an id owner/name on the Hugging Face hub"
    )


def known_classes(checkpoint: Path) -> tuple[str, ...] | None:
    """The class names that a run, a model of ours or one of `transformers` brings, or None.

    Raises:
        CheckpointError: the file with the names is damaged.
        ValueError: the model's configuration is.
    """
    if (checkpoint / DATASET).is_file():
        return load_info(checkpoint).classes
    return read_class_names(checkpoint)


def load_recipe(checkpoint: Path, overrides: list[str]) -> Config:
    """The recipe that the checkpoint was trained with. What it does not state, as it was written by
    an earlier version, stays as it was then, unless an override says otherwise.

    Raises:
        CheckpointError: the folder holds none.
        ConfigError: an override does not fit, or the recipe is of another version.
    """
    recipe = checkpoint / RECIPE
    if not recipe.is_file():
        raise CheckpointError(f"{checkpoint} holds no {RECIPE}; name the recipe with --config")
    try:
        written = load_config(recipe)
    except ConfigError as error:
        raise ConfigError(
            f"{recipe} does not fit maskformer {installed()}; it was written by "
            f"{writer(read_text(recipe))}: {error}"
        ) from None
    former = [f"{key}={value}" for key, value in FORMERLY.items() if not _states(written, key)]
    return load_config(recipe, [*former, *overrides])


def _states(config: Config, key: str) -> bool:
    *path, name = key.split(".")
    section: Any = config
    for part in path:
        section = getattr(section, part)
    return name in section.model_fields_set


def load_prediction_recipe(
    checkpoint: Path, model: SegmentationModel, overrides: list[str]
) -> Config:
    """The recipe of a checkpoint; of one from elsewhere, its model and its sizes of images.

    Args:
        checkpoint: its folder or file.
        model: the one that it holds.
        overrides: `key=value` pairs, as in `load_config`.

    Raises:
        ConfigError: the recipe does not fit this version, or an override does not fit.
        UsageError: an override would change nothing that is predicted.
        ValueError: the folder's pre-processing cannot be followed.
    """
    if (checkpoint / RECIPE).is_file():
        recipe = load_recipe(checkpoint, overrides)
        _check_effect(load_recipe(checkpoint, []), recipe)
        return recipe
    processor = ImageProcessor.from_pretrained(checkpoint)
    reader = processor.reader
    data = ShapesConfig(
        test_short_side=processor.short_side,
        test_max_side=processor.max_side,
        channels=reader.channels,
        value_range=reader.scale.value_range,
        percentiles=reader.scale.percentiles,
        exif_orientation=reader.orientation,
    )
    bare = Config(model=model.config, data=data)
    recipe = override_config(bare, overrides)
    _check_effect(bare, recipe)
    return recipe


def _check_effect(bare: Config, recipe: Config) -> None:
    unused = [key for key in changed_values(bare, recipe) if not _decides_predictions(key)]
    if unused:
        known = [f"{section}.({', '.join(names)})" for section, names in _PREDICTING.items()]
        raise UsageError(
            f"no effect on predictions, which take model and classes from the checkpoint: "
            f"{', '.join(unused[:5])}; leave out what changes them, expected {'; '.join(known)}"
        )


def _decides_predictions(key: str) -> bool:
    section, _, name = key.partition(".")
    return name.partition(".")[0] in _PREDICTING.get(section, ())


def load_info(checkpoint: Path, model: SegmentationModel | None = None) -> DatasetInfo:
    """Class names and colours saved with the checkpoint.

    Args:
        checkpoint: its folder.
        model: tells the classes where the checkpoint is from elsewhere; all of them are stuff. Else
            it must have as many.

    Raises:
        CheckpointError: the file is missing or damaged, or of another number of classes.
    """
    file = checkpoint / DATASET
    if model is not None and not file.is_file():
        count = model.num_classes
        classes = model.class_names or tuple(f"class {index}" for index in range(count))
        return DatasetInfo(classes, frozenset(), palette(count), tuple(range(count)))
    try:
        values = check(_Classes, read_mapping(file))
        info = DatasetInfo(values.classes, values.things, values.colors, values.category_ids)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the class names in {file}: {error}") from error
    if model is not None and info.num_classes != model.num_classes:
        raise CheckpointError(
            f"{file} has {info.num_classes} classes, expected {model.num_classes} as in the model"
        )
    return info
