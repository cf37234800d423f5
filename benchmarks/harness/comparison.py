"""What a benchmark compares: the providers of one computation, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from harness.laps import Laps
from torch import Tensor

NATIVE, REFERENCE, COMPILE = "native", "reference", "compile"
"""This project, the plain PyTorch (or SciPy) that it replaces, and that under `torch.compile`."""
NATIVE_BF16, NATIVE_COMPILE = "native-bf16", "native-compile"
"""This project with other settings than its defaults."""


@dataclass(frozen=True)
class Provider:
    """One way to compute the result.

    Attributes:
        forward: gives what `backward` takes.
        backward: gives the gradients; None where there are none.
        result: the tensors to compare, of what `forward` gave; by default itself.
        laps: the parts of a call, where it marks them.
        tolerance: the largest `error` of a right result, where it is not that of the comparison.
        in_workers: it works in other processes, whose memory is not seen.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any], Sequence[Tensor]] | None = None
    result: Callable[[Any], Sequence[Tensor]] = lambda values: (
        [values] if isinstance(values, Tensor) else values
    )
    laps: Laps | None = None
    tolerance: float | None = None
    in_workers: bool = False

    def run(self) -> None:
        """What is timed."""
        values = self.forward()
        if self.backward is not None:
            self.backward(values)

    def __call__(self) -> list[Tensor]:
        """Result and gradients."""
        values = self.forward()
        gradients = self.backward(values) if self.backward is not None else ()
        return [*(x.detach() for x in self.result(values)), *gradients]


@dataclass(frozen=True)
class Floor:
    """What no implementation can avoid."""

    flops: float
    """Of matrix products; the arithmetic on single elements is not counted."""
    bytes: float
    """Inputs once for each pass over them, and results."""


def relative_error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest relative error (2-norm) of a list of tensors."""
    pairs = zip(found, truth, strict=True)
    errors = [
        float((a.double() - b.to(a.device).double()).norm() / b.double().norm().clamp(min=1e-30))
        for a, b in pairs
    ]
    return max(errors)


class Series(NamedTuple):
    """The place of a case in a growing series.

    Attributes:
        name: of the series.
        size: what grows.
        expected: the exponent of the size in the largest term of the time: that of the series is
            nearer to 0 as long as other terms count.
    """

    name: str
    size: float
    expected: float


@dataclass(frozen=True)
class Comparison:
    """The providers of one case.

    Attributes:
        providers: build a provider when it is needed, with its own imports.
        truth: the result in float64, by a computation that is not ours.
        tolerance: the largest `error` of a right result.
        error: of a result, beside the truth.
        given: the inputs, which do not count as saved for the backward pass.
        floor: of bytes and operations.
        series: for a case of a growing series.
        images: that a call takes, where images a second say something.
    """

    providers: Mapping[str, Callable[[], Provider]]
    truth: Callable[[], Sequence[Tensor]]
    tolerance: float
    floor: Floor
    given: Sequence[Tensor] = ()
    error: Callable[[Sequence[Tensor], Sequence[Tensor]], float] = relative_error
    series: Series | None = None
    images: int | None = None


def is_ours(provider: str) -> bool:
    """Whether a provider is this project, with whatever settings."""
    return provider.split("-")[0] == NATIVE


def is_compiled(provider: str) -> bool:
    """Whether a provider runs under `torch.compile`."""
    return provider.split("-")[-1] == COMPILE


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled anew, whatever was compiled before."""
    torch.compiler.reset()
    return torch.compile(function)
