"""Checks that the output of a command does not overwrite its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

from maskformer.config.schema import (
    DataConfig,
    FolderConfig,
    FolderSplit,
    HuggingFaceConfig,
    ShapesConfig,
    WebDatasetConfig,
)
from maskformer.data.sample import Dataset
from maskformer.errors import OutputError
from maskformer.system.paths import find_input_in, folders_and_links_of, path_exists
from maskformer.system.text import escape


def check_output_beside_data(folder: Path, config: DataConfig, *datasets: Dataset) -> None:
    """Check that an output folder neither is nor contains data, and that files in it would not be
    read as images or labels.

    Args:
        folder: the output folder. It may be below a folder of the data set if it contains no file
            of the data set, and if no folder of the data set is searched there.
        config: the location of both splits.
        datasets: the data sets that are open already, whose files are checked one by one.

    Raises:
        ValueError: results could overwrite data, or be read as data.
    """
    files = (file for dataset in datasets for file in _files_of(dataset))
    found = find_input_in(folder, [*_paths(config), *folders_and_links_of(files)])
    if found is not None:
        raise OutputError(
            f"{escape(folder)} cannot be the output folder: it is or contains "
            f"{escape(found)} of the data set, which results could overwrite; choose another"
        )
    for place in _searched(config):
        if find_input_in(place, [folder]) is not None:
            raise OutputError(
                f"{escape(folder)} cannot be the output folder: it is inside {escape(place)} of "
                "the data set, where results would be read as images or labels; choose a folder "
                "outside of it"
            )


def check_output_beside_model(folder: Path, model: Path) -> None:
    """Check that an output folder neither is nor contains the checkpoint that is read.

    Raises:
        ValueError: results could overwrite files of the checkpoint.
    """
    if find_input_in(folder, [model]) is not None:
        raise OutputError(
            f"{escape(folder)} cannot be the output folder: it is or contains the checkpoint "
            f"{escape(model)}, whose files results could overwrite; choose another"
        )


def _files_of(dataset: Dataset) -> Iterator[Path]:
    shards: Sequence[Path] = getattr(dataset, "shards", ())
    yield from shards or (file for files in getattr(dataset, "files", ()) for file in files)


def _searched(config: DataConfig) -> list[Path]:
    """Return the folders in and below which every file is read as data."""
    if not isinstance(config, FolderConfig):
        return []
    splits = (split for split in (config.train, config.val) if isinstance(split, FolderSplit))
    splits = (split for split in splits if split.list is None and not split.exclude)
    names = [name for split in splits for name in (split.images, split.labels, split.objects)]
    return [config.root / name for name in names if name is not None]


def _paths(config: DataConfig) -> list[Path]:
    if isinstance(config, ShapesConfig):
        return []
    tables = [config.root] if isinstance(config, HuggingFaceConfig | WebDatasetConfig) else []
    given = [getattr(config, key, None) for key in ("classes", "label_names", "categories")]
    for split in (config.train, config.val):
        if isinstance(split, BaseModel):
            given += split.model_dump().values()
    paths = [*tables, *(config.root / name for name in given if isinstance(name, Path))]
    # Ignore missing paths: a model may be used on a machine that does not have its data.
    return [path for path in paths if path_exists(path)]
