"""Semantic data sets on disk: a folder of images and a folder of label files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskformer.config.schema import FolderConfig
from maskformer.data.datasets.label_maps import LabelledImage, LabelMaps
from maskformer.data.datasets.split_files import folders_of, split_files
from maskformer.data.pairing import Pair
from maskformer.data.sample import Split


class Folder(LabelMaps):
    """Images and label files with the same relative names, and one raw value per class.

    Args:
        config: where the files are, and how values are mapped to classes.
        split: the split.

    Attributes:
        notes: a line per folder on the skipped files and why they were skipped.

    Raises:
        DatasetError: a folder is missing or empty, an image has no label file, or no classes are
            found.
    """

    def __init__(self, config: FolderConfig, split: Split) -> None:
        self.config = config
        self._pairs, self.notes = split_files(config, split)

        def training() -> list[LabelledImage]:
            pairs = self._pairs if split == "train" else split_files(config, "train").pairs
            return _images(pairs, config, "train")

        images = _images(self._pairs, config, split)
        super().__init__(config, split, images, training, str(config.root / config.train.labels))

    @property
    def files(self) -> list[tuple[Path, ...]]:
        """The image files, each with its label file and its object file if there is one."""
        return [
            tuple(file for file in (pair.image, pair.labels, pair.objects) if file is not None)
            for pair in self._pairs
        ]


def _images(pairs: Sequence[Pair], config: FolderConfig, split: Split) -> list[LabelledImage]:
    folder = config.root / folders_of(config, split).images
    return [
        LabelledImage(
            pair.name,
            pair.image,
            pair.labels,
            pair.objects,
            pair.image.relative_to(folder).as_posix(),
        )
        for pair in pairs
    ]
