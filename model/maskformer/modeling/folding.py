"""Norms with fixed statistics as part of the convolutions before them."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.frozen_norm import NormedConv2d, pairs

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
    if not any(True for _ in pairs(model.backbone)):
        return model
    folded = deepcopy(model)
    for parent, conv, name, norm in list(pairs(folded.backbone)):
        if isinstance(conv, NormedConv2d):
            conv.separate()
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
        )
        # timm puts an activation, and for training DropBlock, into some norms.
        after = [getattr(norm, part, None) for part in ("drop", "act")]
        setattr(parent, name, nn.Sequential(*(part for part in after if part is not None)))
    try:
        return folded if _agree(model, folded) else model
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError):  # of a backbone that takes no image so small
        return model


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
