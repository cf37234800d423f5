"""What a benchmark compares: several providers of one computation, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from harness.laps import Laps
from torch import Tensor

NATIVE, REFERENCE, COMPILE = "native", "reference", "compile"
"""This project; the baseline, which is the plain PyTorch (or SciPy) code that it replaces; and the
baseline under `torch.compile`.
"""
NATIVE_BF16, NATIVE_COMPILE = "native-bf16", "native-compile"
"""This project with settings that differ from the defaults."""


@dataclass(frozen=True)
class Provider:
    """One way to compute the result.

    Attributes:
        forward: returns the values that are passed to `backward`.
        backward: returns the gradients; None if there is no backward pass.
        result: extracts the tensors to check from what `forward` returned; by default, all of it.
        laps: times the parts of a call, if the call marks them.
        tolerance: the largest `error` of a correct result, if it differs from the comparison's.
        in_workers: whether the work happens in other processes, whose memory cannot be measured.
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
        """Run forward and backward: the code that is timed."""
        values = self.forward()
        if self.backward is not None:
            self.backward(values)

    def __call__(self) -> list[Tensor]:
        """Run forward and backward, and return the tensors to check: result and gradients."""
        values = self.forward()
        gradients = self.backward(values) if self.backward is not None else ()
        return [*(x.detach() for x in self.result(values)), *gradients]


@dataclass(frozen=True)
class Floor:
    """The work that no implementation can avoid: a roofline-style lower bound."""

    flops: float
    """Floating-point operations of matrix products; element-wise arithmetic is not counted."""
    bytes: float
    """Memory traffic: the inputs once per pass over them, and the results."""
    dtype: torch.dtype = torch.float32
    """Dtype of the factors of matrix products."""


def relative_error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest relative error, in the 2-norm, over all pairs of tensors."""
    pairs = zip(found, truth, strict=True)
    errors = [
        float((a.double() - b.to(a.device).double()).norm() / b.double().norm().clamp(min=1e-30))
        for a, b in pairs
    ]
    return max(errors)


class Series(NamedTuple):
    """The place of a case in a scaling series.

    Attributes:
        name: the name of the series.
        size: the value, for this case, of the size that grows.
        expected: the exponent of the size in the dominant term of the time. The fitted exponent
            is closer to 0 as long as other terms matter.
    """

    name: str
    size: float
    expected: float


@dataclass(frozen=True)
class Comparison:
    """The providers of one case.

    Attributes:
        providers: functions that build a provider on demand, including its imports.
        truth: computes the expected result in another way than `native`, in float64 where that is
            affordable.
        tolerance: the largest `error` of a correct result.
        error: the error of a result, given the result and the truth.
        given: the inputs, which do not count as memory saved for the backward pass.
        floor: the unavoidable FLOPs and bytes; zeros if they are not estimated.
        series: the place in a scaling series, if the case belongs to one.
        images: images per call, if throughput in images per second is meaningful.
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
    """Whether a provider is this project, with any settings."""
    return provider.split("-")[0] == NATIVE


def is_compiled(provider: str) -> bool:
    """Whether a provider runs under `torch.compile`."""
    return provider.split("-")[-1] == COMPILE


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function afresh, discarding everything compiled before."""
    torch.compiler.reset()
    return torch.compile(function)
