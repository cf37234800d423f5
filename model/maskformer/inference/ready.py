"""A model made ready to predict fast."""

from __future__ import annotations

from copy import deepcopy

import torch

from maskformer.config.choices import InferencePrecision
from maskformer.inference.direct_masks import give_masks, gives_masks_cheaper
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
        precision: `bf16` runs the network in bfloat16 by autocast, with channels last in memory,
            and returns float32; `auto` does so if the machine supports it. On a CPU, channels are
            last in memory also in float32, unless the backbone is a Swin, and masks are computed
            without their factors if that is cheaper (see `give_masks`).
    """
    if "forward" in vars(model):  # of a training in half precision
        model = _copy(model, with_weights=False)
        del model.forward
    folded = fold_norms(model)
    device = next(model.parameters()).device
    bfloat16 = precision == "bf16" or (precision == "auto" and has_bfloat16(device))
    on_cpu = device.type == "cpu"
    channels_last = bfloat16 or (on_cpu and prefers_channels_last(model))
    masks = on_cpu and gives_masks_cheaper(model)
    if not (channels_last or masks):
        return folded
    ready = _copy(folded, with_weights=channels_last) if folded is model else folded
    if channels_last:
        ready.to(memory_format=torch.channels_last)  # maps follow the layout of the weights
    if masks:
        give_masks(ready)
    if bfloat16:
        enable_autocast(
            ready, torch.bfloat16, memory_format=torch.channels_last, float32_outputs=True
        )
    return ready


def _copy(model: SegmentationModel, *, with_weights: bool) -> SegmentationModel:
    weights = () if with_weights else (*model.parameters(), *model.buffers())
    return deepcopy(model, {id(weight): weight for weight in weights})
