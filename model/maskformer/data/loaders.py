"""Data loaders for training and evaluation.

The images of a training step and their augmentation depend only on the seed and the step number,
not on the number of workers or processes or on earlier steps. So a run is resumed by starting at a
step. If images are grouped by aspect ratio, they also depend on the number of images per batch.
"""

from __future__ import annotations

import itertools
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
from maskformer.system.threads import available_cpus
from mfkernels import SegmentTargets

T = TypeVar("T")


class TrainLoader:
    """An endless stream of training batches that depends only on the seed and the first step.

    Images are taken from an endless sequence of permutations of the data set and put into batches.
    Each group has one incomplete batch at a time, and each completed batch becomes the next one of
    a step. A step consists of `world_size * accumulate` batches, of which each rank gets
    `accumulate`. With the same number of batches per step, all ranks together see the same batches
    as a single process; without groups, they see the same images for any number of batches.

    Args:
        dataset: the raw samples; `GroupedByAspect` has two groups, any other data set has one.
        transform: the augmentation.
        batch_size: images per step, over all processes and accumulated batches.
        seed: the seed of the order and of the augmentation.
        start_step: the first step to yield.
        rank, world_size: the index of this process, and the number of processes.
        workers: the number of worker processes, at most one per CPU that this process may use; 0
            prepares batches in this process.
        accumulate: the number of consecutive batches that this process yields per step.
        normalize: normalises and pads images.
        pin_memory: return batches in page-locked memory for fast copies; by default if there is a
            GPU.
        warn: called if batches cannot be passed through shared memory.

    Raises:
        ValueError: the batch size cannot be divided, or a number is out of range.
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
            raise DatasetError("the data set holds no images")
        self._warn = warn
        landscape = np.zeros(len(dataset), np.bool_)
        if isinstance(dataset, GroupedByAspect):
            landscape = dataset.landscape
        size = batch_size // shares
        sampler = _BatchSampler(landscape, size, seed, start_step, rank, world_size, accumulate)
        self._loader: DataLoader[Sample | DatasetError] = DataLoader(
            _Augmented(dataset, transform),
            batch_sampler=sampler,
            collate_fn=SharedCollate(_TrainCollate(normalize or Normalize())),
            **_worker_options(workers, pin_memory),
        )

    def __iter__(self) -> Iterator[Batch]:
        return _raise_errors(iterate(self._loader, self._warn))


class EvalLoader:
    """Yields every image once, in order. Each rank gets every `world_size`-th batch, so that the
    batches are the same as those of a single process.

    Args:
        dataset: the raw samples.
        collate: makes a batch from samples, such as `ImageProcessor.batch`.
        batch_size: images per batch.
        rank, world_size: the index of this process, and the number of processes.
        workers: the number of worker processes.
        limit: use only this many images from the start of the data set.
        pin_memory: return batches in page-locked memory for fast copies; by default if there is a
            GPU.
        warn: called if batches cannot be passed through shared memory.

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
        """The indices of the images of this process, in order."""
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
    """Hash all parts to a seed in 0..2^63-1 that is the same in every process and version."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class _BatchSampler:
    """Yields for each batch the indices of its images, with the seed of each one's augmentation.

    Args:
        landscape: `[N]` bool, the group of each image; a batch holds images of one group.
        size: images per batch, of which a step has `world_size * accumulate`.
        seed, start_step, rank, world_size, accumulate: as in `TrainLoader`.
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
        # `size` epochs of N images fill exactly N batches and leave none incomplete, in any group.
        # So the sampler can start there without going through the earlier epochs.
        cycle, skipped = divmod(first, len(self.landscape))
        batches = itertools.islice(self._batches(cycle * self.size), skipped, None)
        for number, batch in enumerate(batches, first):
            if number % shares // self.accumulate == self.rank:
                yield [(index, derive_seed(self.seed, "augment", draw)) for index, draw in batch]

    def _batches(self, epoch: int) -> Iterator[list[tuple[int, int]]]:
        """Yield all batches from an epoch on, as pairs of the index of an image and its position
        in the sequence of all images drawn since epoch 0.
        """
        incomplete: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        draw = epoch * len(self.landscape)
        for number in itertools.count(epoch):
            order = self._order(number)
            for index, group in zip(order, self.landscape[order].tolist(), strict=True):
                incomplete[group].append((index, draw))
                draw += 1
                if len(incomplete[group]) == self.size:
                    yield incomplete[group]
                    incomplete[group] = []

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return torch.randperm(len(self.landscape), generator=generator).tolist()


class _Augmented(TorchDataset[Sample | DatasetError]):
    """Augmented samples. Errors are returned as values, because an error raised in a worker would
    arrive with the worker's traceback in its message.
    """

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
    """Return the samples, or the first error among them."""
    usable = []
    for sample in samples:
        if isinstance(sample, DatasetError):
            return sample
        usable.append(sample)
    return usable


def _raise_errors(batches: Iterator[T | DatasetError]) -> Iterator[T]:
    for batch in batches:
        if isinstance(batch, DatasetError):
            # The traceback keeps this frame alive, and the workers with it unless deleted here.
            del batches
            raise batch
        yield batch


def _worker_options(workers: int, pin_memory: bool | None) -> dict[str, Any]:
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    workers = min(workers, available_cpus())
    return {
        "num_workers": workers,
        "timeout": POLL_SECONDS if workers else 0,
        "worker_init_fn": _start_worker,
        "pin_memory": torch.cuda.is_available() if pin_memory is None else pin_memory,
        # Without its own generator, each iterator would draw from the global one.
        "generator": torch.Generator(),
    }


def _start_worker(_: int) -> None:
    # Ctrl-C, `timeout` and job schedulers send signals to the whole process group, but workers must
    # stay alive until the trainer has finished its step. They end by themselves when it is gone.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
