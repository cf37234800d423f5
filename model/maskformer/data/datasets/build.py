"""Building a data set from the `data` section of a recipe."""

from __future__ import annotations

from maskformer.config.schema import (
    CocoInstancesConfig,
    DataConfig,
    FolderConfig,
    HuggingFaceConfig,
    ShapesConfig,
    WebDatasetConfig,
)
from maskformer.data.datasets.coco_instances import CocoInstances
from maskformer.data.datasets.coco_panoptic import CocoPanoptic
from maskformer.data.datasets.folder import Folder
from maskformer.data.datasets.huggingface import HuggingFace
from maskformer.data.datasets.shapes import Shapes
from maskformer.data.datasets.webdataset import WebDataset
from maskformer.data.sample import Dataset, Split


def build_dataset(config: DataConfig, split: Split) -> Dataset:
    """Build the data set that a recipe's `data` section describes.

    Args:
        config: `Config.data`.
        split: `train` or `val`.

    Raises:
        DatasetError: folders or files are missing, empty or do not match each other.
        ValueError: `split` is not the name of a split.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train' or 'val', got {split!r}")
    if isinstance(config, ShapesConfig):
        return Shapes(config, split)
    if isinstance(config, FolderConfig):
        return Folder(config, split)
    if isinstance(config, HuggingFaceConfig):
        return HuggingFace(config, split)
    if isinstance(config, WebDatasetConfig):
        return WebDataset(config, split)
    if isinstance(config, CocoInstancesConfig):
        return CocoInstances(config, split)
    return CocoPanoptic(config, split)
