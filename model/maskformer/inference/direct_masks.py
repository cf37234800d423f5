"""Masks straight from what the last convolution of the pixel decoder reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.convolution import convolve_3x3
from maskformer.modeling.maskformer import MaskFormer
from maskformer.modeling.outputs import MaskOutputs
from mfkernels.checks import without_autocast
from mfkernels.ops.conv3x3.operator import CHANNELS


class DirectMaskFormer(MaskFormer):
    """A MaskFormer that predicts `mask_logits` of the final layer, and no pixel features.

    A mask is an embedding times features, `e · (W * x + b)`. That is `(e · W) * x + e · b`: one
    convolution with a kernel for each query instead of one for each channel of the features, and
    no product after it. That stays in the precision of the weights. Made of another one by
    `give_masks`.
    """

    mask_convolution: nn.Conv2d
    """`W` and `b`, taken from the pixel decoder."""

    def forward(self, pixel_values: Tensor, *args: Any, **options: Any) -> MaskOutputs:
        """As `MaskFormer.forward`."""
        outputs = super().forward(pixel_values, *args, **options)
        embed = outputs["mask_embed"][-1]
        maps = outputs["pixel_features"]  # what the convolution would have read
        with without_autocast(maps.device):
            masks = _masks(embed, maps, self.mask_convolution)
        return MaskOutputs(class_logits=outputs["class_logits"][-1:], mask_logits=masks[None])


def gives_masks_cheaper(model: SegmentationModel) -> bool:
    """Whether fewer queries than channels of the features would come out of that convolution."""
    if type(model) is not MaskFormer:
        return False
    queries, channels = model.config.decoder.queries, model.config.pixel_decoder.mask_channels
    return 4 * queries <= 3 * channels


def give_masks(model: SegmentationModel) -> None:
    """Makes a model, in place, a `DirectMaskFormer`."""
    assert isinstance(model, MaskFormer)
    convolution = model.pixel_decoder.mask_features
    model.pixel_decoder.mask_features = nn.Identity()  # type: ignore[assignment]
    model.__class__ = DirectMaskFormer
    model.mask_convolution = convolution


def _masks(embed: Tensor, maps: Tensor, convolution: nn.Conv2d) -> Tensor:
    """`[B, Q, C']` and `[B, C, h, w]` to mask logits `[B, Q, h, w]`."""
    images, queries, _ = embed.shape
    assert convolution.bias is not None
    embed, maps = embed.to(convolution.weight), maps.to(convolution.weight)
    embed = F.pad(embed, (0, 0, 0, -queries % CHANNELS))
    weights = torch.einsum("bqm,mcij->bqcij", embed, convolution.weight)
    biases = embed @ convolution.bias
    masks = maps.new_empty(images, queries, *maps.shape[2:])
    for image in range(images):
        found = convolve_3x3(maps[image, None], weights[image], biases[image])
        masks[image] = found[0, :queries]
    return masks
