"""Reading the recipe and the classes of a checkpoint for evaluation, prediction or training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, field_validator

from maskformer.config.explain import nearest
from maskformer.config.load import changed_values, load_config, override_config
from maskformer.config.schema import MAX_CLASSES, Config, PredictConfig, ShapesConfig, fields
from maskformer.data import DatasetInfo
from maskformer.data.palette import palette
from maskformer.errors import CheckpointError, ConfigError, UsageError
from maskformer.inference.image_processor import ImageProcessor
from maskformer.modeling.base import SegmentationModel
from maskformer.system.documents import check, read_mapping, read_text
from maskformer.system.listing import why_absent
from maskformer.system.text import escape
from maskformer.system.version import installed, writer
from maskformer.weights.files import WEIGHT_SUFFIXES
from maskformer.weights.locate import RECIPE, find_local
from maskformer.weights.open import find, is_hub_id, read_class_names

DATASET = "dataset.json"
COCO_CLASSES, COCO_THINGS = 133, 80
"""COCO panoptic, whose things come first, is the only data set with this number of classes."""
RUNS = Path("runs")
"""The parent folder of runs for which `train` was given no output folder."""
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
"""The keys of a recipe that affect predictions."""
_PerClass = Field(min_length=1, max_length=MAX_CLASSES)
FORMERLY = {
    "criterion.class_loss": "over_all",
    "data.augmentation.label_resize": "center",
    "train.group_by_aspect": "false",
    "eval.all_crowds": "true",
    "eval.tta.from_original": "true",
}
"""The behaviour of runs from versions without these keys. Their defaults, which are those of the
official code, differ from it.
"""


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
            raise ValueError("expected a different number for each class")
        return numbers


def resolve_checkpoint(path: Path) -> Path:
    """Find the checkpoint that a path or hub id refers to.

    Args:
        path: a run folder, its `checkpoints` folder, a link or a step folder; another folder or
            file with weights (see `find_local`); or the id `owner/name` of a model on the hub, if
            no such folder exists.

    Returns:
        The step folder of a run, or the path of the other folder or file.

    Raises:
        CheckpointError: there is no checkpoint.
        HubError: `path` looks like a hub id, and the hub cannot be reached or has no such model.
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
        f"no checkpoint at {path}{hint}: expected a run folder, a folder with a config.json, a "
        f"weight file ({', '.join(sorted(WEIGHT_SUFFIXES))}), or the id owner/name of a model on "
        "the Hugging Face hub"
    )


def known_classes(checkpoint: Path) -> tuple[str, ...] | None:
    """Return the class names stored with a run, a saved model or a model of `transformers`, or
    None.

    Raises:
        CheckpointError: the file with the names is damaged.
        ValueError: the model's configuration is damaged.
    """
    if (checkpoint / DATASET).is_file():
        return load_info(checkpoint).classes
    return read_class_names(checkpoint)


def load_recipe(checkpoint: Path, overrides: list[str]) -> Config:
    """Load the recipe that a checkpoint was trained with. Keys that it does not contain because an
    earlier version wrote it keep the behaviour of that version, unless overridden (`FORMERLY`).

    Raises:
        CheckpointError: the folder holds no recipe.
        ConfigError: an override is invalid, or the recipe is not valid in this version.
    """
    recipe = checkpoint / RECIPE
    if not recipe.is_file():
        raise CheckpointError(f"{checkpoint} holds no {RECIPE}; pass the recipe with --config")
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
    """Load the recipe of a checkpoint for prediction. If it has none because it was not trained
    here, make one from its model and its image processing.

    Args:
        checkpoint: the folder or file of the checkpoint.
        model: the model in it.
        overrides: `key=value` pairs, as in `load_config`.

    Raises:
        ConfigError: the recipe is not valid in this version, or an override is invalid.
        UsageError: an override has no effect on predictions.
        ValueError: the folder specifies image processing that is not supported.
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
            f"{', '.join(unused[:5])}: no effect on predictions, which use the model and the "
            f"classes of the checkpoint; omit such keys, or override one of {'; '.join(known)}"
        )


def _decides_predictions(key: str) -> bool:
    section, _, name = key.partition(".")
    return name.partition(".")[0] in _PREDICTING.get(section, ())


def load_info(checkpoint: Path, model: SegmentationModel | None = None) -> DatasetInfo:
    """Load the class names and colours saved with a checkpoint.

    Args:
        checkpoint: the folder of the checkpoint.
        model: its model, which must have the same number of classes. If the checkpoint was not
            written by a run, the classes are taken from the model. Such weights do not say which
            classes are things: all are stuff, except in COCO panoptic, which is recognised by its
            number of classes.

    Raises:
        CheckpointError: the file is missing or damaged, or has another number of classes.
    """
    file = checkpoint / DATASET
    if model is not None and not file.is_file():
        count = model.num_classes
        classes = model.class_names or tuple(f"class {index}" for index in range(count))
        things = range(COCO_THINGS if count == COCO_CLASSES else 0)
        return DatasetInfo(classes, frozenset(things), palette(count), tuple(range(count)))
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


def with_things(info: DatasetInfo, things: Sequence[str]) -> DatasetInfo:
    """Return the same classes with other things.

    Raises:
        ConfigError: there is no class of that name.
    """
    for name in things:
        if name not in info.classes:
            text = f"the model has no class '{name}'{nearest(name, info.classes)}"
            raise ConfigError(f"predict.things: {escape(text)}")
    numbers = (number for number, name in enumerate(info.classes) if name in things)
    return replace(info, things=frozenset(numbers))
