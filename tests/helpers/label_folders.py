"""Small folders of images and label files, and the recipes that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskformer.config.load import parse_config
from maskformer.config.schema import DataConfig, FolderConfig


def columns(*values: Any, dtype: Any = np.uint8) -> NDArray[Any]:
    """A label map of two rows whose columns have these values."""
    return np.stack([np.array(values, dtype)] * 2)


def write_pair(
    root: Path, name: str, labels: NDArray[Any], suffix: str = ".jpg", folder: str = "labels"
) -> None:
    """Write an image and its label file, of the same size."""
    image, label = root / "images" / f"{name}{suffix}", root / folder / f"{name}.png"
    for file in (image, label):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", labels.shape[1::-1], (10, 20, 30)).save(image)
    Image.fromarray(labels).save(label)


def folder_config(root: Path, **settings: Any) -> FolderConfig:
    """The `data` section of a recipe for a folder, validated as if read from YAML."""
    config = data_config("folder", root, {"images": "images", "labels": "labels"}, **settings)
    assert isinstance(config, FolderConfig)
    return config


def data_config(form: str, root: Path, split: dict[str, str], **settings: Any) -> DataConfig:
    """The same for any format; both splits are `split` unless the settings override one."""
    data = {"format": form, "root": str(root), "train": split, "val": split} | settings
    return parse_config({"data": data}).data
