"""What a command reads must not be what it writes."""

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
from maskformer.system.paths import find_input_in, folders_and_links_of, is_there
from maskformer.system.text import escape


def check_output_beside_data(folder: Path, config: DataConfig, *datasets: Dataset) -> None:
    """Refuses an output folder that is or holds something of the data set, or whose files would
    count as images or labels.

    Args:
        folder: where results would go; one below the folders of the data set is allowed as long as
            it holds no file of theirs, and none looks there for files.
        config: says where both splits are.
        datasets: those that are open already, whose files count one by one.

    Raises:
        ValueError: results could take the place of data, or be taken for some.
    """
    files = (file for dataset in datasets for file in _files_of(dataset))
    found = find_input_in(folder, [*_paths(config), *folders_and_links_of(files)])
    if found is not None:
        raise OutputError(
            f"{escape(folder)} cannot be the output folder: it is or holds "
            f"{escape(found)} of the data set, which results could overwrite; choose another"
        )
    for place in _searched(config):
        if find_input_in(place, [folder]) is not None:
            raise OutputError(
                f"{escape(folder)} cannot be the output folder: it lies in {escape(place)} of the "
                "data set, where results would be taken for images or labels; choose one outside"
            )


def check_output_beside_model(folder: Path, model: Path) -> None:
    """Refuses an output folder that is or holds the checkpoint that is read.

    Raises:
        ValueError: results could take the place of files of the checkpoint.
    """
    if find_input_in(folder, [model]) is not None:
        raise OutputError(
            f"{escape(folder)} cannot be the output folder: it is or holds the checkpoint "
            f"{escape(model)}, whose files results could overwrite; choose another"
        )


def _files_of(dataset: Dataset) -> Iterator[Path]:
    shards: Sequence[Path] = getattr(dataset, "shards", ())
    yield from shards or (file for files in getattr(dataset, "files", ()) for file in files)


def _searched(config: DataConfig) -> list[Path]:
    """The folders in which, and below which, every file counts."""
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
    # A model may be used far from its data, and by others.
    return [path for path in paths if is_there(path)]
