"""Batches for training and evaluation.

Which images a training step sees, and how they are augmented, follows from the seed and the step
number alone: not from the number of workers or processes, nor from the steps before. Resuming means
starting at a step. Where images are grouped, it also follows from how many of them are a batch.
"""

from __future__ import annotations

import itertools
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from maskformer.data.aspect import GroupedByAspect
from maskformer.data.batches import Batch, EvalBatch, Normalize
from maskformer.data.sample import Dataset, Sample
from maskformer.data.transforms import TrainTransform
from maskformer.data.workers import POLL_SECONDS, SharedCollate, iterate
from maskformer.errors import ConfigError, DatasetError
from maskformer.system.signals import SIGNALS
from mfkernels import SegmentTargets

T = TypeVar("T")


class TrainLoader:
    """An endless stream of training batches, the same for the same seed and step.

    Images are drawn out of an endless row of permutations of the data set and laid into batches, of
    which each group has one open at a time; a full one is the next part of a step. Process `rank`
    gets its parts of each step: those of all processes together are what one process would get
    with as many parts, and without groups what it would get in any case.

    Args:
        dataset: raw samples; `GroupedByAspect` has two groups, others have one.
        transform: the augmentation.
        batch_size: images per step, over all processes and parts.
        seed: of the order and of the augmentation.
        start_step: the first step to yield.
        rank, world_size: this process among all.
        workers: processes that prepare batches, at most one per CPU; 0 prepares them in this one.
        accumulate: parts a step is divided into; a step is this many consecutive batches.
        normalize: mean, deviation and padding.
        pin_memory: page-locked batches for fast copies; by default where a GPU is present.
        warn: told when batches cannot come through shared memory.

    Raises:
        ValueError: the batch size cannot be divided, or numbers are out of range.
        DatasetError: (while iterating) a sample cannot be used.
        WorkerError: (while iterating) a worker cannot be started, died or is stuck.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: TrainTransform,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        *,
        accumulate: int = 1,
        normalize: Normalize | None = None,
        pin_memory: bool | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        shares = world_size * accumulate
        if batch_size < 1 or accumulate < 1 or batch_size % shares:
            raise ConfigError(
                "batch_size must be a positive multiple of processes x accumulate = "
                f"{world_size} x {accumulate}, got {batch_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, got {rank}")
        if start_step < 0:
            raise ValueError(f"start_step must not be negative, got {start_step}")
        if len(dataset) == 0:
            raise DatasetError("the data set holds no image")
        self._warn = warn
        landscape = np.zeros(len(dataset), np.bool_)
        if isinstance(dataset, GroupedByAspect):
            landscape = dataset.landscape
        size = batch_size // shares
        draws = _Draws(landscape, size, seed, start_step, rank, world_size, accumulate)
        self._loader: DataLoader[Sample | DatasetError] = DataLoader(
            _Augmented(dataset, transform),
            batch_sampler=draws,
            collate_fn=SharedCollate(_TrainCollate(normalize or Normalize())),
            **_worker_options(workers, pin_memory),
        )

    def __iter__(self) -> Iterator[Batch]:
        return _raise_errors(iterate(self._loader, self._warn))


class EvalLoader:
    """Every image once, in order; process `rank` takes every `world_size`-th batch, so that images
    have the company that they would have in one process.

    Args:
        dataset: raw samples.
        collate: makes a batch of samples, such as `ImageProcessor.batch`.
        batch_size: images per batch.
        rank, world_size: this process among all.
        workers: processes that prepare batches.
        limit: only the first so many images of the data set.
        pin_memory: page-locked batches for fast copies; by default where a GPU is present.
        warn: told when batches cannot come through shared memory.

    Raises:
        DatasetError: (while iterating) a sample cannot be used.
        WorkerError: (while iterating) a worker cannot be started, died or is stuck.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[Sequence[Sample]], EvalBatch],
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        *,
        limit: int | None = None,
        pin_memory: bool | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, got {rank}")
        length = len(dataset) if limit is None else min(limit, len(dataset))
        starts = range(rank * batch_size, length, world_size * batch_size)
        batches = [list(range(start, min(start + batch_size, length))) for start in starts]
        self._warn = warn
        self.indices = [index for batch in batches for index in batch]
        """Images of this process, in order."""
        self.num_images = len(self.indices)
        self._loader: DataLoader[Sample | DatasetError] = DataLoader(
            _Raw(dataset),
            batch_sampler=batches,
            collate_fn=SharedCollate(_EvalCollate(collate)),
            **_worker_options(workers, pin_memory),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[EvalBatch]:
        return _raise_errors(iterate(self._loader, self._warn))


def derive_seed(*parts: object) -> int:
    """A number in 0..2^63-1 that depends on all parts, the same in every process and version."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class _Draws:
    """Per batch, the images to draw and the seed of each one's augmentation.

    Args:
        landscape: `[N]` bool, the group of each image; a batch holds images of one group.
        size: images per batch, one of the `world_size * accumulate` parts of a step.
    """

    landscape: NDArray[np.bool_]
    size: int
    seed: int
    start_step: int
    rank: int
    world_size: int
    accumulate: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shares = self.world_size * self.accumulate
        first = self.start_step * shares
        # As many epochs as a batch has images fill as many batches as there are images, and leave
        # none half full: from there on, what was before does not matter.
        cycle, skipped = divmod(first, len(self.landscape))
        batches = itertools.islice(self._batches(cycle * self.size), skipped, None)
        for part, batch in enumerate(batches, first):
            if part % shares // self.accumulate == self.rank:
                yield [(index, derive_seed(self.seed, "augment", draw)) for index, draw in batch]

    def _batches(self, epoch: int) -> Iterator[list[tuple[int, int]]]:
        """All batches from an epoch on: images, and which draw each of them is."""
        half_full: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        draw = epoch * len(self.landscape)
        for number in itertools.count(epoch):
            order = self._order(number)
            for index, group in zip(order, self.landscape[order].tolist(), strict=True):
                half_full[group].append((index, draw))
                draw += 1
                if len(half_full[group]) == self.size:
                    yield half_full[group]
                    half_full[group] = []

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return torch.randperm(len(self.landscape), generator=generator).tolist()


class _Augmented(TorchDataset[Sample | DatasetError]):
    """Passes errors on as values: raised in a worker they would arrive wrapped in its traceback."""

    def __init__(self, dataset: Dataset, transform: TrainTransform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, draw: tuple[int, int]) -> Sample | DatasetError:
        index, seed = draw
        try:
            return self.transform(self.dataset[index], seed)
        except DatasetError as error:
            return error


class _Raw(TorchDataset[Sample | DatasetError]):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Sample | DatasetError:
        try:
            return self.dataset[index]
        except DatasetError as error:
            return error


@dataclass(frozen=True)
class _TrainCollate:
    normalize: Normalize

    def __call__(self, samples: Sequence[Sample | DatasetError]) -> Batch | DatasetError:
        usable = _usable(samples)
        if isinstance(usable, DatasetError):
            return usable
        pixel_values = self.normalize([sample.image for sample in usable])
        height, width = pixel_values.shape[-2:]
        maps = [
            F.pad(s.segments, (0, width - s.size[1], 0, height - s.size[0]), value=-1)
            for s in usable
        ]
        return Batch(
            pixel_values=pixel_values,
            targets=SegmentTargets.from_label_maps(maps, [sample.labels for sample in usable]),
            names=tuple(sample.name for sample in usable),
            image_sizes=tuple(sample.size for sample in usable),
        )


@dataclass(frozen=True)
class _EvalCollate:
    collate: Callable[[Sequence[Sample]], EvalBatch]

    def __call__(self, samples: Sequence[Sample | DatasetError]) -> EvalBatch | DatasetError:
        usable = _usable(samples)
        if isinstance(usable, DatasetError):
            return usable
        try:
            return self.collate(usable)
        except DatasetError as error:
            return error


def _usable(samples: Sequence[Sample | DatasetError]) -> list[Sample] | DatasetError:
    """The samples, or the first error among them."""
    usable = []
    for sample in samples:
        if isinstance(sample, DatasetError):
            return sample
        usable.append(sample)
    return usable


def _raise_errors(batches: Iterator[T | DatasetError]) -> Iterator[T]:
    for batch in batches:
        if isinstance(batch, DatasetError):
            # The traceback keeps this frame: without the deletion, workers would run on meanwhile.
            del batches
            raise batch
        yield batch


def _worker_options(workers: int, pin_memory: bool | None) -> dict[str, Any]:
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    workers = min(workers, os.cpu_count() or 1)
    return {
        "num_workers": workers,
        "timeout": POLL_SECONDS if workers else 0,
        "worker_init_fn": _start_worker,
        "pin_memory": torch.cuda.is_available() if pin_memory is None else pin_memory,
        # Without its own generator, each iterator would draw from the global one.
        "generator": torch.Generator(),
    }


def _start_worker(_: int) -> None:
    # Ctrl-C, `timeout` and job schedulers signal the whole process group; workers must live on
    # while the trainer ends its step. They notice by themselves when it is gone.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
