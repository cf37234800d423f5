"""Preparation of a model for fast prediction."""

from __future__ import annotations

from copy import deepcopy

import torch

from maskformer.config.choices import InferencePrecision
from maskformer.inference.direct_masks import direct_masks_are_cheaper, use_direct_masks
from maskformer.modeling.autocast import enable_autocast
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.folding import fold_norms
from maskformer.modeling.layout import prefers_channels_last
from maskformer.system.hardware import has_bfloat16


def ready_to_predict(
    model: SegmentationModel, precision: InferencePrecision = "fp32"
) -> SegmentationModel:
    """Return the model in evaluation mode, with norms folded into convolutions if possible.

    See `fold_norms`.

    Args:
        model: the model on its device; only its mode changes.
        precision: `bf16` runs the network in bfloat16 by autocast, in channels-last memory format,
            and returns float32; `auto` does so if the machine supports it. On a CPU, the memory
            format is channels-last in float32, too, unless the backbone is a Swin, and masks are
            computed without their factors if that is faster (see `DirectMaskFormer`).
    """
    if "forward" in vars(model):  # replaced by `enable_autocast` for training in half precision
        model = _copy(model, with_weights=False)
        del model.forward
    folded = fold_norms(model)
    device = next(model.parameters()).device
    bfloat16 = precision == "bf16" or (precision == "auto" and has_bfloat16(device))
    on_cpu = device.type == "cpu"
    channels_last = bfloat16 or (on_cpu and prefers_channels_last(model))
    direct_masks = on_cpu and direct_masks_are_cheaper(model)
    if not (channels_last or direct_masks):
        return folded
    ready = _copy(folded, with_weights=channels_last) if folded is model else folded
    if channels_last:
        ready.to(memory_format=torch.channels_last)  # maps get the memory format of the weights
    if direct_masks:
        use_direct_masks(ready)
    if bfloat16:
        enable_autocast(
            ready, torch.bfloat16, memory_format=torch.channels_last, float32_outputs=True
        )
    return ready


def _copy(model: SegmentationModel, *, with_weights: bool) -> SegmentationModel:
    weights = () if with_weights else (*model.parameters(), *model.buffers())
    return deepcopy(model, {id(weight): weight for weight in weights})
