"""Batches are copied to a GPU beside its computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from maskformer.data import Batch
from maskformer.data.workers import tensors_of
from maskformer.training.transfer import Transfer
from mfkernels import SegmentTargets

SIZE = 8


def batch(fill: int = 1) -> Batch:
    label_map = torch.zeros(SIZE, SIZE, dtype=torch.int32)
    targets = SegmentTargets.from_label_maps([label_map], [torch.tensor([fill])])
    return Batch(torch.full((1, 3, SIZE, SIZE), float(fill)), targets, ("a",))


def test_a_cpu_takes_the_batch_as_it_is() -> None:
    given = batch()
    taken = Transfer(torch.device("cpu"))(given)
    for before, after in zip(tensors_of(given), tensors_of(taken), strict=True):
        assert torch.equal(before, after)
    assert taken.pixel_values is given.pixel_values


class Stream:
    """What a stream is told to wait for."""

    def __init__(self, _: object = None) -> None:
        self.waited_for: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited_for.append(other)


class Launches(TorchDispatchMode):
    """Notes in which stream each operation runs, by `current`."""

    def __init__(self, current: list[Stream]) -> None:
        super().__init__()
        self.current = current
        self.streams: list[Stream] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.streams.append(self.current[-1])
        return func(*args, **(kwargs or {}))


def test_a_gpu_copies_in_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without one: fake tensors, and streams that note what they are told."""
    computation = Stream()
    current, recorded = [computation], []

    @contextmanager
    def use(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def record(tensor: Tensor, stream: Stream) -> None:
        recorded.append((tensor, stream))

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
    monkeypatch.setattr(Tensor, "record_stream", record)
    transfer = Transfer(torch.device("cuda"))
    with FakeTensorMode():
        given = batch()
        with Launches(current) as launches:
            taken = transfer(given)
    assert launches.streams
    (own,) = set(launches.streams)
    assert own is not computation
    assert computation.waited_for == [own]
    assert taken.pixel_values.device.type == taken.targets.device.type == "cuda"
    found = {id(tensor) for tensor in tensors_of(taken)}
    assert {id(tensor) for tensor, _ in recorded} == found
    assert {stream for _, stream in recorded} == {computation}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_with_what_was_copied() -> None:
    """The computation waits for its batch, and no memory is used again too early."""
    device = torch.device("cuda")
    transfer = Transfer(device)
    busy = torch.rand(2048, 2048, device=device)
    sums = []
    for fill in range(1, 33):
        taken = transfer(batch(fill).pin_memory())
        for _ in range(4):
            busy = (busy @ busy).clamp(0, 1)
        sums.append(taken.pixel_values.sum() + taken.targets.labels.sum() + busy.sum() * 0)
        del taken
    expected = [3 * SIZE * SIZE * fill + fill for fill in range(1, 33)]
    assert torch.stack(sums).tolist() == expected
