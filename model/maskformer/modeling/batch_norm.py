"""BatchNorm, which takes its statistics from the images of one pass."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskformer.errors import ConfigError

REMEDY = (
    "set model.backbone.frozen_norm: true (statistics of the trained weights), or a larger "
    "train.batch_size per process and accumulated part"
)


def warn_of_single_images(model: nn.Module, images: int) -> str:
    """A warning where BatchNorm would learn from one image at a time, else "".

    Args:
        model: in training mode.
        images: per pass, of one process.
    """
    if images > 1 or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return ""
    return (
        "each pass has 1 image, and the backbone has BatchNorm, whose statistics are then those of "
        f"single images, unlike in evaluation: {REMEDY}"
    )


def explain_single_values(error: ValueError, pixel_values: Tensor) -> ValueError:
    """What is to be raised for an error of the backbone: torch's own, or that one says a remedy."""
    if "more than 1 value per channel" not in str(error):
        return error
    count, _, height, width = pixel_values.shape
    return ConfigError(
        f"BatchNorm cannot be trained on {count} image of {width}x{height} pixels, of which the "
        f"backbone leaves one value per channel: {REMEDY}, or larger crops (data.augmentation.crop)"
    )
