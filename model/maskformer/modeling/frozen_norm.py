"""BatchNorm with fixed statistics, computed by the convolution before it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from timm.models._features import FeatureDictNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

IN_ORDER = (nn.Sequential, FeatureDictNet, BasicBlock, Bottleneck)
"""Modules that apply a norm to what the convolution listed right before it gives."""


class FrozenBatchNorm2d(TorchvisionFrozenBatchNorm2d):
    """Batch norm whose statistics and affine terms are buffers; keeps the dtype of its input.

    Takes over values and activation (timm fuses one into some norms) of an ordinary norm.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.act = getattr(norm, "act", None) or nn.Identity()
        self.in_conv = False
        """Whether a `NormedConv2d` does all but the activation."""
        self._made_of: list[tuple[Tensor, int]] = []
        self._affine: tuple[Tensor, Tensor] | None = None
        for name, buffer in self.named_buffers(recurse=False):
            value = getattr(norm, name)
            if value is not None:
                buffer.copy_(value.detach())

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_conv:
            scale, shift = (values.to(x.dtype)[:, None, None] for values in self.affine())
            # One kernel, and nothing but the small `scale` is kept for backward.
            x = torch.addcmul(shift, x, scale)
        activated: Tensor = self.act(x)
        return activated

    def affine(self) -> tuple[Tensor, Tensor]:
        """`scale` and `shift`, `[C]` each, of `x * scale + shift`; computed anew when a buffer has
        changed: five small kernels for each norm of a network otherwise.
        """
        buffers = (self.weight, self.bias, self.running_mean, self.running_var)
        if torch.compiler.is_compiling() or any(buffer.is_inference() for buffer in buffers):
            return self._compute_affine()
        same = len(self._made_of) == len(buffers) and all(
            buffer is known and buffer._version == version
            for buffer, (known, version) in zip(buffers, self._made_of, strict=True)
        )
        if self._affine is None or not same:
            with torch.inference_mode(False):  # training may use it after an evaluation
                self._affine = self._compute_affine()
            self._made_of = [(buffer, buffer._version) for buffer in buffers]
        return self._affine

    def _compute_affine(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class NormedConv2d(nn.Conv2d):
    """A convolution that does the work of the frozen norm after it: `(w * scale) x + shift`.

    Weights are far smaller than maps, so that this saves reading and writing each map once, and
    once more for its gradient. Made of an ordinary convolution by `join`.
    """

    _norm: tuple[FrozenBatchNorm2d]
    """In a tuple: it is a child of another module."""

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._norm[0].affine()
        bias = shift if self.bias is None else self.bias * scale + shift
        return self._conv_forward(x, self.weight * scale[:, None, None, None], bias)

    @staticmethod
    def join(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
        """Moves the work of a norm into the convolution before it, in place."""
        conv.__class__ = NormedConv2d  # same parameters, other `forward`
        conv._norm = (norm,)  # type: ignore[assignment]
        norm.in_conv = True

    def separate(self) -> None:
        """Undoes `join`."""
        (norm,) = self._norm
        norm.in_conv = False
        del self._norm
        self.__class__ = nn.Conv2d  # type: ignore[assignment]


Norm = nn.BatchNorm2d | FrozenBatchNorm2d


def pairs(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Conv2d, str, Norm]]:
    """Each convolution that is listed right before a norm of as many channels: the parent of both,
    the convolution, the name of the norm, and the norm.
    """
    for parent in module.modules():
        for (_, conv), (name, norm) in pairwise(parent.named_children()):
            if (
                isinstance(conv, nn.Conv2d)
                and isinstance(norm, Norm)
                and norm.running_mean is not None
                and len(norm.running_mean) == conv.out_channels
            ):
                yield parent, conv, name, norm


def freeze_norms(module: nn.Module) -> None:
    """Replaces each `BatchNorm2d` by a frozen one, in place."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(child))


def join_norms(module: nn.Module) -> None:
    """Lets convolutions do the work of the frozen norms after them, where it is sure that these
    read nothing else.
    """
    for parent, conv, _, norm in pairs(module):
        if (
            isinstance(parent, IN_ORDER)
            and type(conv) is nn.Conv2d
            and isinstance(norm, FrozenBatchNorm2d)
        ):
            NormedConv2d.join(conv, norm)


def scale_zero_norms(body: nn.Module) -> None:
    """Lets an untrained network with frozen norms learn.

    timm starts the last norm of every residual branch at zero. Frozen, it would stay there and
    cut the branch off; at one, the variance would grow severalfold with every block. The inverse
    root of the number of branches keeps its growth to a small factor over the whole network.
    """
    norms = [module for module in body.modules() if isinstance(module, FrozenBatchNorm2d)]
    zero_norms = [norm for norm in norms if not norm.weight.is_meta and not norm.weight.any()]
    for norm in zero_norms:
        norm.weight.fill_(len(zero_norms) ** -0.5)
