"""Linear layers that use oneDNN where it is faster than MKL."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _is_amd() -> bool:
    try:
        with Path("/proc/cpuinfo").open() as file:
            return "AuthenticAMD" in file.read(200)
    except OSError:
        return False


ONEDNN_IS_FASTER = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and _is_amd()
)
"""Whether float32 matrix products are faster in oneDNN than in MKL, PyTorch's library for them.

On AMD's processors, MKL has half of oneDNN's speed on Zen 5, nine tenths on Zen 4
(benchmarks/NOTES.md).
"""
FEWEST_VALUES = 20_480
"""Of an input. For smaller ones, and with a single thread, PyTorch does not choose oneDNN."""


class Linear(nn.Linear):
    """`nn.Linear` that is computed as a 1 x 1 convolution, by oneDNN, where that is faster: with
    several threads, and not in compiled models.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if not _is_faster(input):
            return super().forward(input)
        # All rows as the pixels of one image: as images of one pixel they would take twice as long.
        x = input.reshape(1, 1, -1, input.shape[-1]).permute(0, 3, 1, 2)
        y = F.conv2d(x, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)


def _is_faster(x: Tensor) -> bool:
    # Exported and traced models keep the usual operator. The compiler fails on the convolution's
    # strides if sizes vary. This comes first: comparisons of sizes would be recorded as guards.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > FEWEST_VALUES
        and torch.get_num_threads() > 1
    )
