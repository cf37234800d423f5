"""Convolutions that use `mfkernels.conv3x3` where it is faster."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mfkernels import conv3x3
from mfkernels.ops.conv3x3 import is_faster


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that calls `mfkernels.conv3x3` where that is applicable and faster."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        if self.is_3x3:
            return convolve_3x3(input, weight, bias)
        return super()._conv_forward(input, weight, bias)

    @property
    def is_3x3(self) -> bool:
        """Whether `conv3x3` can compute it: zero padding 1, stride 1, dilation 1, one group."""
        return (
            self.kernel_size == (3, 3)
            and self.padding == (1, 1)
            and self.padding_mode == "zeros"
            and self.stride == self.dilation == (1, 1)
            and self.groups == 1
        )


def convolve_3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `mfkernels.conv3x3` with the faster of its kernel and `F.conv2d`."""
    if is_faster(x, weight):
        return conv3x3(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)
