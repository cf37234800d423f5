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
from maskformer.data.inspection.checks import Findings, check_objects, find_everything
from maskformer.data.sample import Split
from maskformer.errors import ConfigError, DatasetError
from maskformer.evaluation.measures import check_measures
from maskformer.modeling.criterion import build_criterion
from maskformer.output.console import Progress
from maskformer.output.data_report import classes_table, sizes_line, write_samples
from maskformer.output.output_folder import check_output_folder
from maskformer.output.protected_inputs import check_output_beside_data
from maskformer.system.text import counted
from maskformer.training.build import check_best_metric, with_classes

SAMPLES = 6
"""Pictures of each split."""


def run(recipe: Config, output: Path | None, default: Path) -> None:
    """Reads all data of a recipe and says what training would say or refuse, and more.

    Args:
        recipe: whose `data` is looked at, and what else of it must fit.
        output: the folder for pictures; one beside `default` that is not there yet unless given.

    Raises:
        FileExistsError: `output` holds files.
        OutputError: `output` is or holds data of the recipe.
        typer.Exit: with 1, training would refuse the data.
    """
    folder = output or _unused(default)
    _check_empty(folder)
    progress = Progress()
    splits, errors = _open(recipe)
    check_output_beside_data(folder, recipe.data, *splits.values())
    found = find_everything(splits)
    for split, dataset in splits.items():
        progress.print(sizes_line(split, found.looks[split]))
        for note in getattr(dataset, "notes", ()):
            progress.print(f"{split} data: {note}")
    if found.looks:
        info = next(iter(splits.values())).info
        everything = recipe.eval.all_classes
        progress.print(classes_table(info, found.looks, everything=everything))
    for warning in found.warnings:
        progress.warn(warning)
    errors += found.errors
    for error in errors:
        progress.error(error)
    if _draw(splits, found, folder):
        progress.print(f"Samples with their labels drawn over are in {folder}: look at them.")
    progress.print(_summary(len(errors), len(found.warnings)))
    if errors:
        raise typer.Exit(1)


def _unused(folder: Path) -> Path:
    """The folder, or with the first number after its name that nothing has."""
    free, number = folder, 1
    while free.exists() or free.is_symlink():
        number += 1
        free = folder.with_name(f"{folder.name}_{number}")
    return free


def _check_empty(folder: Path) -> None:
    check_output_folder(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} holds files, and nothing is written over: empty it or choose another "
            "--output"
        )


def _open(recipe: Config) -> tuple[dict[Split, Dataset], list[str]]:
    """The splits that can be read, of one list of classes, and what is wrong with the recipe."""
    splits: dict[Split, Dataset] = {}
    errors: list[str] = []
    with _gathering(errors):
        check_objects(recipe.data, recipe.eval)
    for split in get_args(Split):
        with _gathering(errors):
            splits[split] = build_dataset(recipe.data, split)
    if not splits:
        return splits, [*dict.fromkeys(errors)]
    info, *others = (dataset.info for dataset in splits.values())
    for other in others:
        with _gathering(errors):
            check_same_classes(info.classes, other.classes)
        if other.classes != info.classes:  # what those of val mean is open
            del splits["val"]
    with _gathering(errors):
        build_criterion(with_classes(recipe, info.num_classes), info.classes)
    with _gathering(errors):
        check_best_metric(recipe, info)
    if "val" in splits:
        with _gathering(errors):
            check_measures(recipe.eval, splits["val"])
    return splits, errors


@contextmanager
def _gathering(errors: list[str]) -> Iterator[None]:
    """What training would end with is kept, and the check goes on."""
    try:
        yield
    except (ConfigError, DatasetError) as error:
        errors.append(str(error))


def _draw(splits: Mapping[Split, Dataset], found: Findings, folder: Path) -> bool:
    """Whether there was something to draw."""
    drawn = False
    for split, dataset in splits.items():
        indices = found.looks[split].varied(SAMPLES)
        write_samples(dataset, indices, folder / split)
        drawn = drawn or bool(indices)
    return drawn


def _summary(errors: int, warnings: int) -> str:
    warned = counted(warnings, "warning") if warnings else "no warnings"
    if errors:
        problems = counted(errors, "problem")
        return f"Training would refuse this data: {problems} and {warned}, listed above."
    listed = ", listed above" if warnings else ""
    return f"Training can use this data: {warned}{listed}."
