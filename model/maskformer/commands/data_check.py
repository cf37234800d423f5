"""`maskformer data check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import typer

from maskformer.config.schema import Config
from maskformer.data import Dataset, build_dataset
from maskformer.data.class_change import check_same_classes
from maskformer.data.inspection.checks import Findings, check_objects, find_all_problems
from maskformer.data.sample import Split
from maskformer.errors import ConfigError, DatasetError
from maskformer.evaluation.measures import check_measures
from maskformer.modeling.criterion import build_criterion
from maskformer.output.console import Progress
from maskformer.output.data_report import classes_table, sizes_line, write_samples
from maskformer.output.output_folder import check_output_folder
from maskformer.output.protected_inputs import check_output_beside_data
from maskformer.system.text import counted
from maskformer.training.build_data import check_best_metric, with_classes

SAMPLES = 6
"""Number of pictures of each split."""


def run(recipe: Config, output: Path | None, default: Path) -> None:
    """Read all data of a recipe, and report everything that training would warn about or reject.

    Args:
        recipe: the recipe, whose other sections are also checked against the data.
        output: an empty folder for pictures; by default, `default` or a numbered name next to it.
        default: the default folder for pictures.

    Raises:
        FileExistsError: `output` is not empty.
        OutputError: `output` is or contains data of the recipe.
        typer.Exit: with exit code 1 if training would reject the data.
    """
    folder = output or _unused_name(default)
    _check_empty(folder)
    progress = Progress()
    splits, errors = _open(recipe)
    check_output_beside_data(folder, recipe.data, *splits.values())
    found = find_all_problems(splits)
    for split, dataset in splits.items():
        progress.print(sizes_line(split, found.scans[split]))
        for note in getattr(dataset, "notes", ()):
            progress.print(f"{split} data: {note}")
    if found.scans:
        info = next(iter(splits.values())).info
        everything = recipe.eval.all_classes
        progress.print(classes_table(info, found.scans, everything=everything))
    warnings = [*found.warnings, *_too_few_queries(recipe, found)]
    for warning in warnings:
        progress.warn(warning)
    errors += found.errors
    for error in errors:
        progress.error(error)
    if _draw(splits, found, folder):
        progress.print(f"Samples with their labels drawn over are in {folder}: look at them.")
    progress.print(_summary(len(errors), len(warnings)))
    if errors:
        raise typer.Exit(1)


def _unused_name(folder: Path) -> Path:
    """Return the folder, or if it exists, its name with the first number that is not used."""
    free, number = folder, 1
    while free.exists() or free.is_symlink():
        number += 1
        free = folder.with_name(f"{folder.name}_{number}")
    return free


def _check_empty(folder: Path) -> None:
    check_output_folder(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty, and existing files are not overwritten: empty it or choose "
            "another --output"
        )


def _open(recipe: Config) -> tuple[dict[Split, Dataset], list[str]]:
    """Open the splits that can be read and have the same classes; also return all errors."""
    splits: dict[Split, Dataset] = {}
    errors: list[str] = []
    with _collecting(errors):
        check_objects(recipe.data, recipe.eval)
    for split in get_args(Split):
        with _collecting(errors):
            splits[split] = build_dataset(recipe.data, split)
    if not splits:
        return splits, [*dict.fromkeys(errors)]
    info, *others = (dataset.info for dataset in splits.values())
    for other in others:
        with _collecting(errors):
            check_same_classes(info.classes, other.classes)
        if other.classes != info.classes:  # the classes of val are ambiguous
            del splits["val"]
    with _collecting(errors):
        build_criterion(with_classes(recipe, info.num_classes), info.classes)
    with _collecting(errors):
        check_best_metric(recipe, info)
    if "val" in splits:
        with _collecting(errors):
            check_measures(recipe.eval, splits["val"])
    return splits, errors


@contextmanager
def _collecting(errors: list[str]) -> Iterator[None]:
    """Add errors that would end training to a list, and continue after the block."""
    try:
        yield
    except (ConfigError, DatasetError) as error:
        errors.append(str(error))


def _too_few_queries(recipe: Config, found: Findings) -> list[str]:
    """Warn if training images have more segments than the model has queries."""
    queries = recipe.model.decoder.queries
    bipartite = recipe.model.architecture == "maskformer" and recipe.criterion.matching != "fixed"
    most = found.scans["train"].max_segments if "train" in found.scans else 0
    if not bipartite or most <= queries:
        return []
    text = (
        f"train data: an image has {most} segments, more than the {queries} queries of the model, "
        "which finds at most one segment per query; raise model.decoder.queries"
    )
    return [text]


def _draw(splits: Mapping[Split, Dataset], found: Findings, folder: Path) -> bool:
    """Draw samples of each split; return whether there were any."""
    drawn = False
    for split, dataset in splits.items():
        indices = found.scans[split].choose_varied(SAMPLES)
        write_samples(dataset, indices, folder / split)
        drawn = drawn or bool(indices)
    return drawn


def _summary(errors: int, warnings: int) -> str:
    warned = counted(warnings, "warning") if warnings else "no warnings"
    if errors:
        problems = counted(errors, "problem")
        return f"Training would reject this data: {problems} and {warned}, listed above."
    listed = ", listed above" if warnings else ""
    return f"Training can use this data: {warned}{listed}."
