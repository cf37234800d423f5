"""Colours of classes out of palette label files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskformer.config.schema import FolderConfig
from maskformer.data import Folder
from maskformer.data.palette import palette

VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
CHOSEN = ((1, 2, 3), (4, 5, 6), (7, 8, 9))


@pytest.fixture
def config(tmp_path: Path) -> FolderConfig:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "images" / "a.jpg")
    split = {"images": "images", "labels": "labels"}
    return FolderConfig(root=tmp_path, train=split, val=split, classes=("_background_", "a", "b"))


def save_labels(config: FolderConfig, colors: list[tuple[int, int, int]] | None) -> None:
    labels = Image.fromarray(np.arange(3, dtype=np.uint8)[None].repeat(2, 0))
    if colors is not None:
        labels.putpalette([channel for color in colors for channel in color])
    labels.save(config.root / "labels" / "a.png")


@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        (VOC, tuple(VOC[:3])),
        (None, palette(3)),  # grey
        ([(k, k, k) for k in range(256)], palette(3)),  # grey, written as a palette
        ([(9, 9, 200)] * 256, palette(3)),  # tells nothing apart
        (VOC[:2], palette(3)),  # too short
    ],
)
def test_the_palette_of_the_labels(
    config: FolderConfig,
    colors: list[tuple[int, int, int]] | None,
    expected: tuple[tuple[int, int, int], ...],
) -> None:
    save_labels(config, colors)
    assert Folder(config, "val").info.colors == expected


def test_chosen_colours_win(config: FolderConfig) -> None:
    save_labels(config, VOC)
    assert Folder(config.model_copy(update={"colors": CHOSEN}), "val").info.colors == CHOSEN


def test_values_have_their_own_colours(config: FolderConfig) -> None:
    save_labels(config, VOC)
    shifted = config.model_copy(update={"label_offset": 1})
    assert Folder(shifted, "val").info.colors == tuple(VOC[1:])


def test_a_broken_label_file_is_for_its_reader(config: FolderConfig) -> None:
    (config.root / "labels" / "a.png").write_bytes(b"broken")
    assert Folder(config, "val").info.colors == palette(3)
