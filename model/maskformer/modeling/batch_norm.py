"""Warnings and errors for BatchNorm in training mode with too little data in a forward pass."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskformer.errors import ConfigError

REMEDY = (
    "set model.backbone.frozen_norm: true to use the statistics of the pretrained weights, or "
    "raise train.batch_size per process and accumulation step"
)


def warn_of_single_images(model: nn.Module, images: int) -> str:
    """Return a warning if BatchNorm would compute statistics of single images, otherwise "".

    Args:
        model: the model in training mode.
        images: the number of images that one process puts through the model in one forward pass.
    """
    if images > 1 or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return ""
    return (
        "each forward pass has 1 image, so the BatchNorm of the backbone is trained with the "
        f"statistics of single images, unlike in evaluation: {REMEDY}"
    )


def explain_single_values(error: ValueError, pixel_values: Tensor) -> ValueError:
    """Return the error to raise for an error of the backbone: one that names a remedy if BatchNorm
    had a single value per channel, otherwise `error` itself.
    """
    if "more than 1 value per channel" not in str(error):
        return error
    count, _, height, width = pixel_values.shape
    return ConfigError(
        f"BatchNorm cannot be trained on {count} image of {width}x{height} pixels, which the "
        "backbone reduces to one value per channel: "
        f"{REMEDY}, or use larger crops (data.augmentation.crop)"
    )
