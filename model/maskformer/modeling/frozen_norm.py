"""BatchNorm with fixed statistics, computed by the convolution before it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from timm.models._features import FeatureDictNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from maskformer.modeling.convolution import Conv2d

IN_ORDER = (nn.Sequential, FeatureDictNet, BasicBlock, Bottleneck)
"""Modules that apply a norm to what the convolution listed right before it gives."""


class _Kept(NamedTuple):
    """An affine map, and the buffers with their versions that it was computed from."""

    made_of: list[tuple[Tensor, int]]
    affine: tuple[Tensor, Tensor]


class FrozenBatchNorm2d(TorchvisionFrozenBatchNorm2d):
    """Batch norm whose statistics and affine terms are buffers; keeps the dtype of its input.

    Takes over values and activation (timm fuses one into some norms) of an ordinary norm.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.act = getattr(norm, "act", None) or nn.Identity()
        self.in_conv = False
        """Whether a `NormedConv2d` does all but the activation."""
        self._kept: _Kept | None = None
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
        """`scale` and `shift`, `[C]` each, of `x * scale + shift`.

        Kept until a buffer is another one or changes in place: five small kernels fewer for each
        norm. What no version counter sees (`.data`, NumPy's views) is missed.
        """
        buffers = (self.weight, self.bias, self.running_mean, self.running_var)
        if torch.compiler.is_compiling() or any(buffer.is_inference() for buffer in buffers):
            return self._compute_affine()
        made_of = [(buffer, buffer._version) for buffer in buffers]
        if self._kept is not None and all(map(_is_same, made_of, self._kept.made_of)):
            return self._kept.affine
        with torch.inference_mode(False):  # training may use it after an evaluation
            affine = self._compute_affine()
        # Nothing from the memory of a graph that is captured, and nothing without values.
        if type(affine[0]) is Tensor and not _is_captured(affine[0]):
            self._kept = _Kept(made_of, affine)
        return affine

    def __getstate__(self) -> dict[str, Any]:
        """Of copies, too: their buffers count versions anew."""
        return self.__dict__ | {"_kept": None}

    def _compute_affine(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class NormedConv2d(Conv2d):
    """A convolution that does the work of the frozen norm after it: `(w * scale) x + shift`.

    Weights are far smaller than maps, so that this saves reading and writing the gradient of each
    map once more, and where the convolution adds its bias by itself, the map too. Made of an
    ordinary convolution by `join`.
    """

    _norm: tuple[FrozenBatchNorm2d]
    """In a tuple: it is a child of another module."""

    def forward(self, x: Tensor) -> Tensor:
        # Replicas of DataParallel have the norm of the first device.
        scale, shift = (values.to(x.device) for values in self._norm[0].affine())
        weight = self.weight * scale[:, None, None, None]
        bias = shift if self.bias is None else self.bias * scale + shift
        return self._conv_forward(x, weight.to(self.weight.dtype), bias.to(self.weight.dtype))

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
        self.__class__ = Conv2d  # type: ignore[assignment]


def _is_same(a: tuple[Tensor, int], b: tuple[Tensor, int]) -> bool:
    return a[0] is b[0] and a[1] == b[1]


def _is_captured(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


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
    read nothing else. For training, of a model that nobody changes any more: a convolution that is
    replaced would take its norm along.
    """
    for parent, conv, _, norm in pairs(module):
        if (
            isinstance(parent, IN_ORDER)
            and type(conv) in (nn.Conv2d, Conv2d)
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
