"""Writes tar archives (shards) of images and label maps."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode(pixels: NDArray[Any], kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_members(file: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar archive with these members, in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file


def pair(key: str, labels: NDArray[Any], grey: int = 9) -> dict[str, bytes]:
    """The members for an image and its label map, of the same size."""
    image = np.full((*labels.shape, 3), grey, np.uint8)
    return {f"{key}.jpg": encode(image, "JPEG"), f"{key}.png": encode(labels)}
