"""Checks of a data set before the first training step, so that no invalid data reaches the loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from maskformer.config.schema import DataConfig, EvalConfig, ObjectLabels, WebDatasetConfig
from maskformer.data.inspection.problems import all_problems, raise_problems
from maskformer.data.inspection.scan import Scan, scan_split
from maskformer.data.inspection.shared_images import image_files, shared_images
from maskformer.data.sample import Dataset, DatasetInfo, Split
from maskformer.errors import ConfigError, DatasetError
from maskformer.system.text import counted, escape

SHOWN = 5
VOID_SHARE = 0.5


@dataclass(frozen=True)
class Findings:
    """The results of checking all images of a data set.

    Attributes:
        scans: the statistics of each split.
        warnings, errors: messages that begin with the name of the split.
    """

    scans: dict[Split, Scan]
    warnings: list[str]
    errors: list[str]


def check_dataset(dataset: Dataset, *, limit: int = 500) -> list[str]:
    """Read all images, or `limit` evenly spread ones, and raise an error if any cannot be used.

    The same checks run whenever a sample is read, so errors that a partial scan misses are found
    then.

    Args:
        dataset: one split.
        limit: the largest number of images to read.

    Returns:
        Warnings, one sentence each: classes that never occur, mostly void pixels, suspicious raw
        values, or listed segments without pixels.

    Raises:
        DatasetError: images cannot be used. The message names the files, the likely cause and the
            setting to change.
    """
    scan = scan_split(dataset, limit, "Checking data")
    raise_problems(dataset, scan)
    return _warnings(dataset, scan)


def check_splits(train: Dataset, val: Dataset, *, limit: int = 500) -> list[str]:
    """Check both splits as `check_dataset` does, and also that the same classes occur in both and
    no image is in both.

    Returns:
        Warnings, one sentence each, which begin with the name of the split.

    Raises:
        DatasetError: a split cannot be used.
    """
    scans: dict[Split, Scan] = {}
    warnings = []
    splits: dict[Split, Dataset] = {"train": train, "val": val}
    for split, dataset in splits.items():
        scans[split] = scan_split(dataset, limit, f"Checking {split} data")
        raise_problems(dataset, scans[split])
        found = _warnings(dataset, scans[split])
        warnings += [f"{split} data: {text}" for text in found]
    return [*warnings, *_warnings_of_both(splits, scans, limit)]


def find_all_problems(splits: Mapping[Split, Dataset]) -> Findings:
    """Read all images of the splits, and collect all warnings and errors of `check_splits`.

    Args:
        splits: one or both splits, with the same classes.
    """
    found = Findings({}, [], [])
    for split, dataset in splits.items():
        scan = scan_split(dataset, len(dataset), f"Checking {split} data")
        found.scans[split] = scan
        lines = all_problems(dataset, scan)
        try:
            warnings = _warnings(dataset, scan) if len(scan.indices) else []
        except DatasetError as error:
            lines, warnings = [*lines, str(error)], []
        found.errors.extend(f"{split} data: {text}" for text in lines)
        found.warnings.extend(f"{split} data: {text}" for text in warnings)
    if len(splits) > 1:
        limit = max(map(len, splits.values()))
        found.warnings.extend(_warnings_of_both(splits, found.scans, limit))
    return found


def check_objects(data: DataConfig, evaluation: EvalConfig) -> None:
    """Check that labels separate the objects of things if the evaluation scores objects.

    Raises:
        ConfigError: the labels have only one class per pixel.
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
        f"data.things names {_listing(data.things)}, but label files separate classes, not "
        f"objects, and {key} would score each class of an image as one object; set {remedy}, use "
        f"data.format coco_panoptic or coco_instances, remove data.things, or set {key}: false"
    )


def _warnings_of_both(
    splits: Mapping[Split, Dataset], scans: Mapping[Split, Scan], limit: int
) -> list[str]:
    warnings = []
    pairs: tuple[tuple[Split, Split], ...] = (("train", "val"), ("val", "train"))
    for one, other in pairs:
        names = _only_in(scans[one], scans[other], splits[one].info)
        if names:
            warnings.append(f"{one} data: it has classes that {other} lacks: {_listing(names)}")
    files = shared_images(splits["train"], splits["val"], limit)
    shared = [escape(file.name) for file in files]
    if shared:
        same = not {*files}.isdisjoint(image_files(splits["train"]))
        warnings.append(
            f"val data: {counted(len(shared), 'image')} of the same name and bytes "
            f"{'are' if len(shared) > 1 else 'is'} in train too ({_listing(shared)}), so scores "
            "say little about new images; "
            f"{'both splits read the same folder: correct data.val, or ' * same}"
            "remove them from one split"
        )
    return warnings


def _only_in(scan: Scan, other: Scan, info: DatasetInfo) -> list[str]:
    """Return the classes that occur in one split only; none if the other was read in part."""
    if not other.complete:
        return []
    only = (scan.pixels[:-1] > 0) & (other.pixels[:-1] == 0)
    return [name for name, missing in zip(info.classes, only, strict=True) if missing]


def _warnings(dataset: Dataset, scan: Scan) -> list[str]:
    check: Callable[[Collection[int]], list[str]] | None
    check = getattr(dataset, "check_label_values", None)
    warnings = [] if check is None else check(scan.label_values)
    info, pixels = dataset.info, scan.pixels
    if scan.empty_segments:
        warnings.append(f"listed segments without pixels were ignored: {scan.empty_segments}")
    void = pixels[-1] / pixels.sum()
    in_files = check is not None  # as opposed to in a JSON
    if void > VOID_SHARE:
        settings = "data.ignore and data.label_offset" if in_files else "data.label_map"
        warnings.append(f"{void:.0%} of the pixels are void; check {settings}")
    absent = [name for name, count in zip(info.classes, pixels[:-1], strict=True) if count == 0]
    if info.num_classes == 1 and not info.things:
        warnings.append(
            f"'{escape(info.classes[0])}' is the only class, so there is nothing to distinguish "
            "it from; give other pixels a class too, such as background"
        )
    elif len(absent) >= info.num_classes - 1 and info.num_classes > 1:
        settings = "data.ignore, data.label_offset and " if in_files else ""
        warnings.append(f"at most one class occurs in the labels; check {settings}data.label_map")
    elif absent and scan.complete:
        warnings.append(
            f"{len(absent)} of {info.num_classes} classes never occur: {_listing(absent)}"
        )
    return warnings


def _listing(names: Sequence[str]) -> str:
    shown = [f"'{name}'" if "," in name else name for name in map(escape, names[:SHOWN])]
    return ", ".join(shown) + (" and more" if len(names) > SHOWN else "")
