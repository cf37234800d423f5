"""Data sets of Hugging Face's `datasets`, with a column of images and one of label images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from maskformer.config.schema import HuggingFaceConfig
from maskformer.data.datasets.label_maps import LabelledImage, LabelMaps
from maskformer.data.datasets.split_files import take_share
from maskformer.data.image_files.opening import FILE_LIMIT
from maskformer.data.sample import Split
from maskformer.errors import DatasetError
from maskformer.system.reading import open_regular
from maskformer.system.text import escape


class HuggingFace(LabelMaps):
    """The rows of a split, whose images are named `train-000000` and so on.

    Args:
        config: the data set, its splits and columns, and how values are mapped to classes.
        split: the split.

    Raises:
        DatasetError: the package `datasets` is not installed, the data set cannot be loaded, or it
            has no such split or column.
    """

    def __init__(self, config: HuggingFaceConfig, split: Split) -> None:
        tables = _load(config)

        def training() -> list[LabelledImage]:
            return _rows(tables, config, "train")

        super().__init__(config, split, _rows(tables, config, split), training, escape(config.root))


@dataclass(frozen=True)
class _Cell:
    """An image file in a table.

    Attributes:
        table: the table with this column only, because accessing a row reads all its columns.
        row, column: the position of the cell.
        name: the name of the cell in messages.
        folders: the folders in which files that the cell refers to must be.
    """

    table: Any
    row: int
    column: str
    name: str
    folders: tuple[Path, ...]

    def __str__(self) -> str:
        return self.name

    def open(self) -> BinaryIO:
        value = self.table[self.row][self.column]
        if value is None or value["bytes"] is value["path"] is None:
            raise ValueError("the cell is empty")
        if value["bytes"] is not None:
            return io.BytesIO(value["bytes"])
        file = Path(value["path"]).resolve()
        if not any(file.is_relative_to(folder) for folder in self.folders):
            raise DatasetError(
                f"{escape(self.name)} names the file {escape(value['path'])}, which is outside of "
                f"{escape(self.folders[0])}; copy it into that folder, or embed the images in the "
                "table, as save_to_disk does"
            )
        return open_regular(file, FILE_LIMIT)


def _allowed_folders(root: Path) -> tuple[Path, ...]:
    """Return the folders in which a table may refer to files. It must not refer to any other file,
    because it may come from an untrusted source.
    """
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = (
        config.HF_DATASETS_CACHE,
        config.DOWNLOADED_DATASETS_PATH,
        config.EXTRACTED_DATASETS_PATH,
        HF_HUB_CACHE,
    )
    return tuple(Path(folder).resolve() for folder in (*([root] if root.is_dir() else []), *caches))


def _load(config: HuggingFaceConfig) -> Any:
    try:  # names, because `import datasets` would find a folder `datasets` of the user
        from datasets import load_dataset, load_from_disk
    except ImportError:
        raise DatasetError(
            "data.format: huggingface needs the package datasets; install it: "
            "pip install 'mfkernels[datasets]', or pip install datasets"
        ) from None
    try:
        if config.root.is_dir():
            return load_from_disk(config.root)
        return load_dataset(str(config.root), config.subset)
    except Exception as error:  # any type, from the network, files and many formats
        raise DatasetError(
            f"data.root: {escape(config.root)} cannot be loaded ({escape(error) or type(error)}); "
            "expected a folder that save_to_disk wrote, or the name of a data set on the hub"
        ) from None


def _rows(tables: Any, config: HuggingFaceConfig, split: Split) -> list[LabelledImage]:
    shared = isinstance(config.val, float)
    name = config.train if split == "train" or shared else str(config.val)
    table = _table(tables, name, f"data.{'train' if shared else split}", config)
    folders = _allowed_folders(config.root)

    def cells(column: str) -> list[_Cell]:
        selected, rows = table.select_columns([column]), range(len(table))
        return [_Cell(selected, row, column, f"{name}[{row}].{column}", folders) for row in rows]

    pairs = zip(cells(config.image), cells(config.label), strict=True)
    images = [LabelledImage(f"{name}-{row:06d}", *pair) for row, pair in enumerate(pairs)]
    if not images:
        raise DatasetError(f"data.{split}: the split {name} of {escape(config.root)} has no rows")
    if isinstance(config.val, float):
        return take_share(images, config.val, config.seed, split, lambda image: image.name)
    return images


def _table(tables: Any, name: str, key: str, config: HuggingFaceConfig) -> Any:
    """Return a split whose image and label columns yield encoded files, not decoded images."""
    from datasets import Dataset, Image

    if isinstance(tables, Dataset):
        tables = {str(tables.split or config.train): tables}
    if name not in tables:
        raise DatasetError(
            f"{key}: {escape(config.root)} has no split {name}; it has "
            f"{', '.join(map(escape, tables))} (data.val may also be a fraction such as 0.1)"
        )
    table = tables[name]
    for setting in ("image", "label"):
        column = getattr(config, setting)
        if not isinstance(table.features.get(column), Image):
            found = ", ".join(f"{feature} ({kind})" for feature, kind in table.features.items())
            raise DatasetError(
                f"data.{setting}: {escape(config.root)} has no column {column} of images; its "
                f"columns: {escape(found):.300}"
            )
        table = table.cast_column(column, Image(decode=False))
    return table
