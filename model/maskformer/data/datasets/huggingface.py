"""Tables of Hugging Face's `datasets`, with a column of images and one of label images."""

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
    """The rows of a split; images are called `train-000000` and so on.

    Args:
        config: the data set, its splits and columns, and how values become classes.
        split: which of the two splits.

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
    """An image file in a table."""

    table: Any
    row: int
    column: str
    name: str

    def __str__(self) -> str:
        return self.name

    def open(self) -> BinaryIO:
        value = self.table[self.row][self.column]
        if value is None:
            raise ValueError("the cell is empty")
        if value["bytes"] is None:
            return open_regular(Path(value["path"]), FILE_LIMIT)
        return io.BytesIO(value["bytes"])


def _load(config: HuggingFaceConfig) -> Any:
    try:
        import datasets
    except ImportError:
        raise DatasetError(
            "data.format: huggingface needs the package datasets; install it: "
            "pip install 'mfkernels[datasets]', or pip install datasets"
        ) from None
    try:
        if config.root.is_dir():
            return datasets.load_from_disk(config.root)
        return datasets.load_dataset(str(config.root), config.subset)
    except Exception as error:  # of the network, of files, of many formats
        raise DatasetError(
            f"data.root: {escape(config.root)} cannot be loaded ({escape(error) or type(error)}); "
            "expected a folder that save_to_disk wrote, or the name of a data set on the hub"
        ) from None


def _rows(tables: Any, config: HuggingFaceConfig, split: Split) -> list[LabelledImage]:
    shared = isinstance(config.val, float)
    name = config.train if split == "train" or shared else str(config.val)
    table = _table(tables, name, f"data.{'train' if shared else split}", config)
    images = [
        LabelledImage(
            f"{name}-{row:06d}",
            _Cell(table, row, config.image, f"{name}[{row}].{config.image}"),
            _Cell(table, row, config.label, f"{name}[{row}].{config.label}"),
        )
        for row in range(len(table))
    ]
    if not images:
        raise DatasetError(f"data.{split}: the split {name} of {escape(config.root)} has no row")
    if isinstance(config.val, float):
        return take_share(images, config.val, config.seed, split, lambda image: image.name)
    return images


def _table(tables: Any, name: str, key: str, config: HuggingFaceConfig) -> Any:
    """The two columns of a split, as files."""
    from datasets import Dataset, Image

    if isinstance(tables, Dataset):
        tables = {str(tables.split or config.train): tables}
    if name not in tables:
        raise DatasetError(
            f"{key}: {escape(config.root)} has no split {name}; it has {', '.join(tables)}, and "
            "data.val may be a share such as 0.1"
        )
    table = tables[name]
    for setting in ("image", "label"):
        column = getattr(config, setting)
        if not isinstance(table.features.get(column), Image):
            found = ", ".join(f"{each} ({kind})" for each, kind in table.features.items())
            raise DatasetError(
                f"data.{setting}: {escape(config.root)} has no column {column} of images; its "
                f"columns: {found:.300}"
            )
        table = table.cast_column(column, Image(decode=False))
    return table.select_columns([config.image, config.label])
