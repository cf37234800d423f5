"""ADE20K-Full: 847 classes from the colour-coded PNGs of the official archive."""

from __future__ import annotations

import shutil
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from maskformer.config.recipes import CONFIG_FOLDER
from maskformer.data.image_files.opening import opened
from maskformer.data.image_files.orientation import UPRIGHT, load_as_stored
from maskformer.data.preparation.files import (
    Prepared,
    for_each,
    make_folders,
    names_with,
    write_missing,
)
from maskformer.errors import DatasetError
from maskformer.system.reading import read_lines
from maskformer.system.text import escape

VOID = 65535
SHORT_SIDE = 512
"""Images whose short side is longer are resized to it."""
_LABELS = "_seg.png"
_SPLITS = ("training", "validation")
_LARGEST_CODE = 25 * 256 + 255


def prepare_ade20k_full(root: Path) -> Prepared:
    """Write `images_detectron2` and `annotations_detectron2` (16-bit TIFF, 65535 for void), each
    with `training` and `validation`, next to the archive's `images`, which are not changed.

    As in the official preparation, large images are resized, and others are copied.

    Args:
        root: the folder `ADE20K_2021_17_01` of the archive.

    Raises:
        DatasetError: it is not that folder, or images in it cannot be used.
        DiskFullError, OSError: the results cannot be written.
    """
    expected = "the folder of the official archive, ADE20K_2021_17_01"
    names = names_with(root / "images", _LABELS, expected)
    times = Counter(PurePosixPath(name).name for name in names)
    twice = [name for name, count in times.items() if count > 1]
    if twice:
        raise DatasetError(
            f"{root / 'images'} has {len(twice)} file names more than once, first {twice[0]}"
        )
    folders = [root / kind for kind in ("images_detectron2", "annotations_detectron2")]
    make_folders([folder / split for folder in folders for split in _SPLITS])
    work = partial(_prepare, root, class_table())
    written = for_each(names, work, "Preparing ADE20K-Full")
    return Prepared(len(names), sum(written), tuple(folders))


def class_table() -> NDArray[np.uint16]:
    """Return the class of each object number, `[6656]`, or `VOID`."""
    numbers = read_lines(CONFIG_FOLDER / "ade20k_full" / "object_ids.txt")
    table = np.full(_LARGEST_CODE + 1, VOID, np.uint16)
    table[[int(number) for number in numbers]] = np.arange(len(numbers))
    return table


def shrunk_size(height: int, width: int) -> tuple[int, int]:
    """Return the size of the prepared image and labels."""
    if min(height, width) <= SHORT_SIDE:
        return height, width
    if width >= height:
        return SHORT_SIDE, round(width / height * SHORT_SIDE)
    return round(height / width * SHORT_SIDE), SHORT_SIDE


def shrink_image(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize `[H, W, 3]` with bilinear interpolation without antialiasing, like OpenCV."""
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    shrunk = interpolate(values, size, mode="bilinear", align_corners=False)
    return shrunk[0].permute(1, 2, 0).round().byte().numpy()


def shrink_labels(values: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
    """Resize `[H, W]` to the values at the upper left corners, like OpenCV's "nearest"."""
    rows, columns = (
        np.floor(np.arange(new) * (old / new)).astype(int)
        for old, new in zip(values.shape, size, strict=True)
    )
    return values[rows[:, None], columns]


def _prepare(root: Path, table: NDArray[np.uint16], name: str) -> int:
    """Prepare one image and its labels; return the number of files written."""
    stem = PurePosixPath(name).name
    split = _SPLITS[stem.split("_")[1:2] == ["val"]]
    image = root / "images_detectron2" / split / f"{stem}.jpg"
    labels = root / "annotations_detectron2" / split / f"{stem}.tif"
    if image.exists() and labels.exists():
        return 0
    source, codes = root / "images" / f"{name}.jpg", root / "images" / f"{name}{_LABELS}"
    with opened(source, "image") as opened_image:
        pixels, tag = load_as_stored(opened_image)
        values = table[_read_codes(codes)]
        if values.shape != (pixels.height, pixels.width):
            raise DatasetError(
                f"label file {escape(codes)} is {values.shape[1]}x{values.shape[0]} pixels, its "
                f"image {escape(source)} is {pixels.width}x{pixels.height}"
            )
        size = shrunk_size(*values.shape)
        write_image = partial(shutil.copyfile, source)
        if size != values.shape or tag != UPRIGHT:
            small = Image.fromarray(shrink_image(np.array(pixels.convert("RGB")), size))
            write_image = partial(small.save, format="JPEG")
        tiff = Image.fromarray(shrink_labels(values, size))
    # Write outside of the block, in which a full disk would be reported as a broken image.
    write_labels = partial(tiff.save, format="TIFF", compression="tiff_adobe_deflate")
    return write_missing(image, write_image) + write_missing(labels, write_labels)


def _read_codes(file: Path) -> NDArray[np.int32]:
    """Read the object number of each pixel, `[H, W]`: R // 10 * 256 + G."""
    with opened(file, "label") as image:
        if image.mode not in ("RGB", "RGBA"):
            raise DatasetError(
                f"label file {escape(file)} has {image.mode} pixels, expected RGB with the object "
                "number R // 10 * 256 + G"
            )
        codes = np.asarray(image).astype(np.int32)
    return codes[..., 0] // 10 * 256 + codes[..., 1]
