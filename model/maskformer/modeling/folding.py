"""Folding BatchNorm with fixed statistics into the convolutions before it, for inference."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.frozen_norm import NormedConv2d, pairs

PROBE_SIDE = 64
TOLERANCE = 1e-4
"""The largest accepted error of a backbone map, relative to the map's largest value. Rounding alone
causes about a hundredth of it.
"""


def fold_norms(model: SegmentationModel) -> SegmentationModel:
    """Return a copy in evaluation mode whose BatchNorm layers are folded into the convolutions
    before them. Its results are equal up to rounding, and it cannot be trained further.

    If there is nothing to fold, or if the backbone does not apply its convolutions and norms in
    the order in which it registers them, the result is `model` itself.
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
        # Some of timm's norms contain an activation, and DropBlock for training.
        after = [getattr(norm, part, None) for part in ("drop", "act")]
        setattr(parent, name, nn.Sequential(*(part for part in after if part is not None)))
    try:
        return folded if _agree(model, folded) else model
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError):  # the backbone rejects so small an image
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
