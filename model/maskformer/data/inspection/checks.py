"""Reads a data set before the first training step, so that the loss sees no garbage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from maskformer.config.schema import DataConfig, EvalConfig, ObjectLabels, WebDatasetConfig
from maskformer.data.inspection.look import Look, look_at
from maskformer.data.inspection.problems import all_problems, refuse
from maskformer.data.inspection.shared_images import image_files, shared_images
from maskformer.data.sample import Dataset, DatasetInfo, Split
from maskformer.errors import ConfigError, DatasetError
from maskformer.system.text import counted, escape

SHOWN = 5
VOID_SHARE = 0.5


@dataclass(frozen=True)
class Findings:
    """What a look at all images of a data set found.

    Attributes:
        looks: what each split shows.
        warnings, errors: one sentence each, which begin with the split.
    """

    looks: dict[Split, Look]
    warnings: list[str]
    errors: list[str]


def check_dataset(dataset: Dataset, *, limit: int = 500) -> list[str]:
    """Reads all images, or `limit` of them evenly spread, and raises if any cannot be used.

    The same checks run whenever a sample is read, so what a partial look misses is still found.

    Args:
        dataset: one split.
        limit: how many images to read at most.

    Returns:
        Warnings, one sentence each: classes that never occur, mostly void pixels, raw values that
        look like a mistake, listed segments without a pixel.

    Raises:
        DatasetError: what is wrong, with the files, the likely cause and the setting to change.
    """
    look = look_at(dataset, limit, "Checking data")
    refuse(dataset, look)
    return _warnings(dataset, look)


def check_splits(train: Dataset, val: Dataset, *, limit: int = 500) -> list[str]:
    """Checks both splits as `check_dataset` does, and whether they show the same classes and no
    image is in both.

    Returns:
        Warnings, one sentence each, which begin with the split.

    Raises:
        DatasetError: a split cannot be used.
    """
    looks: dict[Split, Look] = {}
    warnings = []
    splits: dict[Split, Dataset] = {"train": train, "val": val}
    for split, dataset in splits.items():
        looks[split] = look_at(dataset, limit, f"Checking {split} data")
        refuse(dataset, looks[split])
        found = _warnings(dataset, looks[split])
        warnings += [f"{split} data: {text}" for text in found]
    return [*warnings, *_warnings_of_both(splits, looks, limit)]


def find_everything(splits: Mapping[Split, Dataset]) -> Findings:
    """Reads all images of the splits and gathers what `check_splits` would warn of, and whatever
    it would refuse them for.

    Args:
        splits: one or both; they have the same classes.
    """
    found = Findings({}, [], [])
    for split, dataset in splits.items():
        look = look_at(dataset, len(dataset), f"Checking {split} data")
        found.looks[split] = look
        lines = all_problems(dataset, look)
        try:
            warnings = _warnings(dataset, look) if len(look.indices) else []
        except DatasetError as error:
            lines, warnings = [*lines, str(error)], []
        found.errors.extend(f"{split} data: {text}" for text in lines)
        found.warnings.extend(f"{split} data: {text}" for text in warnings)
    if len(splits) > 1:
        limit = max(map(len, splits.values()))
        found.warnings.extend(_warnings_of_both(splits, found.looks, limit))
    return found


def check_objects(data: DataConfig, evaluation: EvalConfig) -> None:
    """Refuses to score objects of things that the labels do not tell apart.

    Raises:
        ConfigError: the format has classes per pixel only.
    """
    key = "eval.panoptic" if evaluation.panoptic else "eval.instances"
    scored = evaluation.panoptic or evaluation.instances
    if not (scored and isinstance(data, ObjectLabels) and data.things):
        return
    if all(data.splits_with_objects):
        return
    remedy = (
        "objects in data.train and data.val to folders of files that number them (VOC's "
        "SegmentationObject)"
    )
    if isinstance(data, WebDatasetConfig):
        remedy = "data.objects to the suffix of members that number them"
    raise ConfigError(
        f"data.things names {_listing(data.things)}, but label files tell classes apart, not "
        f"objects, and {key} would score each class of an image as one object; set {remedy}, use "
        "data.format coco_panoptic or coco_instances, or leave out data.things, or set "
        f"{key}: false"
    )


def _warnings_of_both(
    splits: Mapping[Split, Dataset], looks: Mapping[Split, Look], limit: int
) -> list[str]:
    warnings = []
    pairs: tuple[tuple[Split, Split], ...] = (("train", "val"), ("val", "train"))
    for one, other in pairs:
        names = _only_in(looks[one], looks[other], splits[one].info)
        if names:
            warnings.append(f"{one} data: it has {_listing(names)}, which {other} never shows")
    files = shared_images(splits["train"], splits["val"], limit)
    shared = [escape(file.name) for file in files]
    if shared:
        same = not {*files}.isdisjoint(image_files(splits["train"]))
        warnings.append(
            f"val data: {counted(len(shared), 'image')} of the same name and bytes "
            f"{'are' if len(shared) > 1 else 'is'} in train too ({_listing(shared)}), so that "
            f"scores say little of new images; {'both read one folder: mend data.val, or ' * same}"
            "take them out of one split"
        )
    return warnings


def _only_in(look: Look, other: Look, info: DatasetInfo) -> list[str]:
    """Classes of one split that the other was wholly read for in vain."""
    if not other.complete:
        return []
    only = (look.pixels[:-1] > 0) & (other.pixels[:-1] == 0)
    return [name for name, missing in zip(info.classes, only, strict=True) if missing]


def _warnings(dataset: Dataset, look: Look) -> list[str]:
    find: Callable[[Collection[int]], list[str]] | None
    find = getattr(dataset, "look_for_mistakes", None)
    warnings = [] if find is None else find(look.label_values)
    info, pixels = dataset.info, look.pixels
    if look.left_out:
        warnings.append(f"listed segments without a pixel were left out: {look.left_out}")
    void = pixels[-1] / pixels.sum()
    in_files = find is not None  # and not in a JSON
    if void > VOID_SHARE:
        settings = "data.ignore and data.label_offset" if in_files else "data.label_map"
        warnings.append(f"{void:.0%} of the pixels are void; check {settings}")
    absent = [name for name, count in zip(info.classes, pixels[:-1], strict=True) if count == 0]
    if info.num_classes == 1 and not info.things:
        warnings.append(
            f"'{escape(info.classes[0])}' is the only class: nothing can be told apart from it; "
            "give other pixels a class too, such as background"
        )
    elif len(absent) >= info.num_classes - 1 and info.num_classes > 1:
        settings = "data.ignore, data.label_offset and " if in_files else ""
        warnings.append(f"at most one class occurs in the labels; check {settings}data.label_map")
    elif absent and look.complete:
        warnings.append(
            f"{len(absent)} of {info.num_classes} classes never occur: {_listing(absent)}"
        )
    return warnings


def _listing(names: Sequence[str]) -> str:
    shown = [f"'{name}'" if "," in name else name for name in map(escape, names[:SHOWN])]
    return ", ".join(shown) + (" and more" if len(names) > SHOWN else "")
