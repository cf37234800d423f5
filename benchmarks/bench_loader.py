"""The training loader alone: reading, augmentation and collation at ADE20K's image sizes.

Generated scenes are stored as JPEG and PNG files in the official folder layout. `worker` measures
the work of one worker process, but runs it in this process with a single thread, as in a worker.
`workers` starts one process per CPU and fetches a few batches, start-up included. Each case is
checked against the other: both must prepare bit-identical batches.
"""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.comparison import NATIVE, Comparison, Floor, Provider
from harness.laps import Laps
from harness.plugin import comparison_test
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import maskformer
from maskformer.data import Batch, TrainLoader, TrainTransform, build_dataset

Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """`workers`: processes, 0 for this one. `batches`: fetched per call."""

    workers: int
    batches: int = 1
    images: int = 16
    size: Size = (512, 683)
    """Size of most files; every fourth is in portrait orientation, with the sides swapped."""


WORKERS = os.cpu_count() or 1
CASES = {
    "worker 16 images of 512x683": Case(0),
    f"workers {WORKERS} processes, {2 * WORKERS} x 16 images": Case(WORKERS, 2 * WORKERS),
}
FILES = 32
SEGMENTS, CLASSES = 9, 150
QUALITY = 75
"""JPEG quality, which gives files of about 65 kB."""


@functools.cache
def scenes(size: Size) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder with the generated files, kept until the program ends."""
    folder = tempfile.TemporaryDirectory(prefix="loader")
    rng = np.random.default_rng(0)
    images, labels = (Path(folder.name, kind, "training") for kind in ("images", "annotations"))
    for place in (images, labels):
        place.mkdir(parents=True)
    for number in range(FILES):
        shape = size if number % 4 else size[::-1]
        picture = Image.fromarray(scene(rng, shape))
        picture.save(images / f"{number}.jpg", quality=QUALITY)
        Image.fromarray(segments(rng, shape)).save(labels / f"{number}.png")
    return folder


def scene(rng: np.random.Generator, size: Size) -> NDArray[np.uint8]:
    """A photo-like image: large smooth areas, texture and camera noise."""
    height, width = size

    def smooth(values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC))

    colors = smooth(rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    texture = smooth(rng.normal(0, 22, (height // 4, width // 4)).astype(np.float32))
    noise = rng.normal(0, 4, (height, width, 1))
    return np.clip(colors + texture[..., None] + noise, 0, 255).astype(np.uint8)


def segments(rng: np.random.Generator, size: Size) -> NDArray[np.uint8]:
    """A label map of Voronoi cells with ADE20K's class numbers, where 0 is void."""
    rows, columns = np.indices(size)
    centers = rng.random((SEGMENTS, 2)) * size
    distance = [(rows - y) ** 2 + (columns - x) ** 2 for y, x in centers]
    values = rng.integers(0, CLASSES + 1, SEGMENTS)
    return values[np.argmin(distance, axis=0)].astype(np.uint8)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Marked:
    """Wraps a data set or transform and marks a lap each time it returns."""

    def __init__(self, inner: Any, laps: Laps, name: str) -> None:
        self._inner, self._laps, self._name = inner, laps, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> Any:
        return self(index, call=self._inner.__getitem__)

    def __call__(self, *args: Any, call: Any = None) -> Any:
        result = (call or self._inner)(*args)
        self._laps.mark(self._name)
        return result


def loader(case: Case, workers: int, laps: Laps) -> TrainLoader:
    config = maskformer.load_config("ade20k/r50", [f"data.root={scenes(case.size).name}"])
    dataset = build_dataset(config.data, "train")
    transform = TrainTransform(config.data.augmentation)
    if workers == 0:
        dataset, transform = Marked(dataset, laps, "read"), Marked(transform, laps, "augment")
    return TrainLoader(dataset, transform, case.images, seed=0, workers=workers)


def in_this_process(case: Case) -> Provider:
    """Each call prepares the next batches in this process, on one thread."""
    laps = Laps(torch.device("cpu"))
    laps.start()
    batches = iter(loader(case, 0, laps))

    def forward() -> Batch:
        laps.start()
        with one_thread():
            *_, last = itertools.islice(batches, case.batches)
        laps.mark("collate")
        return last

    return Provider(forward, result=tensors, laps=laps)


def in_workers(case: Case) -> Provider:
    """Each call starts the worker processes and fetches the first batches."""

    def forward() -> Batch:
        batches = loader(case, max(case.workers, 1), Laps(torch.device("cpu")))
        *_, last = itertools.islice(batches, case.batches)
        return last

    return Provider(forward, result=tensors, in_workers=True)


def tensors(batch: Batch) -> list[Tensor]:
    assert batch.targets.label_map is not None
    return [batch.pixel_values, batch.targets.label_map]


def make(name: str, device: torch.device, shrink: bool) -> Comparison:
    case = CASES[name]
    if shrink:
        case = replace(case, images=2, size=(64, 96))
    native, other = in_workers, in_this_process
    if case.workers == 0:
        native, other = other, native
    return Comparison(
        {NATIVE: lambda: native(case)},
        truth=lambda: other(case)(),
        tolerance=0.0,
        floor=Floor(0, 0),
        images=case.images * case.batches,
    )


test_loader = comparison_test(CASES, [NATIVE], make)
