"""BatchNorm with fixed statistics, which the convolution before it can apply during training."""

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
"""Modules known to apply each norm to the output of the convolution registered right before it."""


class _CachedAffine(NamedTuple):
    """Scale and shift, and the buffers with their versions from which they were computed."""

    sources: list[tuple[Tensor, int]]
    affine: tuple[Tensor, Tensor]


class FrozenBatchNorm2d(TorchvisionFrozenBatchNorm2d):
    """BatchNorm whose statistics and affine terms are buffers. The output has the input's dtype.

    Args:
        norm: the norm to replace. Its values are copied, and so is its activation, which timm
            fuses into some norms.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.act = getattr(norm, "act", None) or nn.Identity()
        self.in_conv = False
        """Whether a `NormedConv2d` applies scale and shift, which leaves only the activation."""
        self._cache: _CachedAffine | None = None
        for name, buffer in self.named_buffers(recurse=False):
            value = getattr(norm, name)
            if value is not None:
                buffer.copy_(value.detach())

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_conv:
            scale, shift = (values.to(x.dtype)[:, None, None] for values in self.affine())
            # A single kernel, which saves only the small `scale` for the backward pass.
            x = torch.addcmul(shift, x, scale)
        activated: Tensor = self.act(x)
        return activated

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return `scale` and `shift`, `[C]` each, of `x * scale + shift`.

        They are cached until a buffer is replaced or changed in place, which saves five small
        kernel launches per norm. Changes that bypass the version counter (through `.data` or a
        NumPy view) go unnoticed.
        """
        buffers = (self.weight, self.bias, self.running_mean, self.running_var)
        if torch.compiler.is_compiling() or any(buffer.is_inference() for buffer in buffers):
            return self._compute_affine()
        sources = [(buffer, buffer._version) for buffer in buffers]
        if self._cache is not None and all(map(_is_same, sources, self._cache.sources)):
            return self._cache.affine
        with torch.inference_mode(False):  # training may use them after an evaluation
            affine = self._compute_affine()
        # Fake tensors have no values, and memory of a CUDA graph being captured is reused.
        if type(affine[0]) is Tensor and not _is_captured(affine[0]):
            self._cache = _CachedAffine(sources, affine)
        return affine

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the cache, also in copies, because versions of copied buffers start anew."""
        return self.__dict__ | {"_cache": None}

    def _compute_affine(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class NormedConv2d(Conv2d):
    """A convolution that also applies the frozen norm after it: `(w * scale) x + shift`.

    Weights are far smaller than feature maps. Scaling them instead of the maps saves one read and
    one write of the gradient of each map, and those of the map itself where the convolution kernel
    adds the bias. `join` turns an ordinary convolution into one of these.
    """

    _norm: tuple[FrozenBatchNorm2d]
    """In a tuple, so that it is not registered as a child of this module, too."""

    def forward(self, x: Tensor) -> Tensor:
        # The replicas of DataParallel share the norm on the first device.
        scale, shift = (values.to(x.device) for values in self._norm[0].affine())
        weight = self.weight * scale[:, None, None, None]
        bias = shift if self.bias is None else self.bias * scale + shift
        return self._conv_forward(x, weight.to(self.weight.dtype), bias.to(self.weight.dtype))

    @staticmethod
    def join(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
        """Make a convolution apply the norm after it, in place."""
        conv.__class__ = NormedConv2d  # same parameters, different `forward`
        conv._norm = (norm,)  # type: ignore[assignment]
        norm.in_conv = True

    def separate(self) -> None:
        """Undo `join`."""
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
    """Yield each convolution that is registered right before a norm with the same number of
    channels, as the parent of both, the convolution, the norm's name in the parent, and the norm.
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
    """Replace each `BatchNorm2d` by a frozen one, in place."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(child))


def join_norms(module: nn.Module) -> None:
    """Make convolutions apply the frozen norms after them (see `NormedConv2d`), where the norm is
    known to read only the output of that convolution.

    Call this right before training, when no module is replaced any more: replacing a joined
    convolution would lose its norm.
    """
    for parent, conv, _, norm in pairs(module):
        if (
            isinstance(parent, IN_ORDER)
            and type(conv) in (nn.Conv2d, Conv2d)
            and isinstance(norm, FrozenBatchNorm2d)
        ):
            NormedConv2d.join(conv, norm)


def scale_zero_norms(body: nn.Module) -> None:
    """Give frozen norms with zero scale a positive one, so that an untrained network can learn.

    timm initialises the scale of the last norm of each residual branch with zero. Frozen, it would
    stay zero and disable the branch. With scale one, the variance would grow severalfold with each
    block. With one over the square root of the number of branches, it grows only by a small factor
    over the whole network.
    """
    norms = [module for module in body.modules() if isinstance(module, FrozenBatchNorm2d)]
    zero_norms = [norm for norm in norms if not norm.weight.is_meta and not norm.weight.any()]
    for norm in zero_norms:
        norm.weight.fill_(len(zero_norms) ** -0.5)
