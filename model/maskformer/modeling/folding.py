"""Norms with fixed statistics as part of the convolutions before them."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from maskformer.modeling.base import SegmentationModel

PROBE_SIDE = 64
TOLERANCE = 1e-4
"""Of the maps of the backbone, in terms of their largest value: rounding is a hundredth of it."""


def fold_norms(model: SegmentationModel) -> SegmentationModel:
    """A copy, in evaluation mode, whose convolutions also do what the BatchNorm after them did;
    the same to rounding. It cannot be trained further.

    The model itself comes back where there is nothing to fold, or where its backbone wires
    convolutions and norms otherwise than it lists them.
    """
    model.eval()
    if not any(True for _ in _pairs(model.backbone)):
        return model
    folded = deepcopy(model)
    for parent, conv, name, norm in list(_pairs(folded.backbone)):
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
        )
        # timm puts an activation, and for training DropBlock, into some norms.
        after = [getattr(norm, part, None) for part in ("drop", "act")]
        setattr(parent, name, nn.Sequential(*(part for part in after if part is not None)))
    return folded if _agree(model, folded) else model


def _pairs(
    module: nn.Module,
) -> Iterator[tuple[nn.Module, nn.Conv2d, str, nn.BatchNorm2d | FrozenBatchNorm2d]]:
    """Each convolution that is listed right before a norm of as many channels."""
    for parent in module.modules():
        for (_, conv), (name, norm) in pairwise(parent.named_children()):
            if (
                isinstance(conv, nn.Conv2d)
                and isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
                and norm.running_mean is not None
                and len(norm.running_mean) == conv.out_channels
            ):
                yield parent, conv, name, norm


@torch.inference_mode()
def _agree(model: SegmentationModel, folded: SegmentationModel) -> bool:
    weight = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.config.num_channels, PROBE_SIDE, PROBE_SIDE)
    probe = torch.randn(shape, generator=generator).to(weight)
    return all(
        _is_close(*maps) for maps in zip(model.backbone(probe), folded.backbone(probe), strict=True)
    )


def _is_close(expected: Tensor, found: Tensor) -> bool:
    return bool((expected - found).abs().max() <= TOLERANCE * expected.abs().max())
