"""Batches for training and evaluation.

Which images a training step sees, and how they are augmented, follows from the seed and the step
number alone: not from the number of workers or processes, nor from the steps before. Resuming means
starting at a step.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

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

    Step `s` takes the draws from `s * batch_size` on, out of an endless row of permutations of the
    data set. Process `rank` gets its slice of them: the slices of all processes together are what
    one process would get.

    Args:
        dataset: raw samples.
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
        draws = _Draws(len(dataset), batch_size, seed, start_step, rank, world_size, accumulate)
        self._loader: DataLoader[Sample | DatasetError] = DataLoader(
            _Augmented(dataset, transform),
            batch_sampler=draws,
            collate_fn=SharedCollate(_TrainCollate(normalize or Normalize())),
            **_worker_options(workers, pin_memory),
        )

    def __iter__(self) -> Iterator[Batch]:
        return _raise_errors(iterate(self._loader, self._warn))


class EvalLoader:
    """Every image once, in order; process `rank` takes every `world_size`-th.

    Args:
        dataset: raw samples.
        collate: makes a batch of samples, such as `ImageProcessor.batch`.
        batch_size: images per batch in this process.
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
        indices = range(rank, length, world_size)
        self._warn = warn
        self.num_images = len(indices)
        """Images of this process."""
        self._loader: DataLoader[Sample | DatasetError] = DataLoader(
            _Raw(dataset),
            batch_size=batch_size,
            sampler=indices,
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
    """Per batch, the images to draw and the seed of each one's augmentation."""

    length: int
    batch_size: int
    seed: int
    start_step: int
    rank: int
    world_size: int
    accumulate: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // (self.world_size * self.accumulate)
        step, epoch = self.start_step, -1
        order: list[int] = []
        while True:
            for part in range(self.accumulate):
                first = step * self.batch_size + (self.rank * self.accumulate + part) * share
                draws = []
                for draw in range(first, first + share):
                    if draw // self.length != epoch:
                        epoch = draw // self.length
                        order = self._order(epoch)
                    draws.append(
                        (order[draw % self.length], derive_seed(self.seed, "augment", draw))
                    )
                yield draws
            step += 1

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return torch.randperm(self.length, generator=generator).tolist()


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
