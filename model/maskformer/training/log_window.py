"""Statistics since the last log line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from maskformer.output.console import peak_memory


class LogWindow:
    """Sums over the steps since the last log line, kept on the device to avoid synchronisation."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.processes = accelerator.num_processes
        self.start = time.perf_counter()
        self.waited = 0.0
        self.steps = 0
        self.images = 0
        self.passes = 0
        self.sums: dict[str, Tensor] = {}
        self.norms: list[Tensor] = []
        self.kernel_errors: dict[str, float] = {}

    def add_losses(self, losses: dict[str, Tensor], total: Tensor, images: int) -> None:
        self.images += images
        self.passes += 1
        for name, value in {"loss": total, **losses}.items():
            previous = self.sums.get(name)
            value = value.detach()
            self.sums[name] = value if previous is None else previous + value

    def add_norm(self, norm: Tensor) -> None:
        self.norms.append(norm.detach())

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Exclude the time of the block, such as an evaluation, from the throughput."""
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def summary(self) -> dict[str, float]:
        """Return mean losses over the window and all processes, images per second, and the peak
        memory of this process. Must be called by every process.
        """
        means = torch.stack(list(self.sums.values())).div(self.passes)
        means = self._accelerator.reduce(means, "mean")
        values = dict(zip(self.sums, means.tolist(), strict=True))
        values["grad_norm"] = torch.stack(self.norms).mean().item()
        values["images_per_second"] = self.images * self.processes / self.seconds
        values["data_wait"] = self.waited / self.seconds
        values["peak_memory_mb"] = peak_memory(self._accelerator.device) / 1e6
        return values
