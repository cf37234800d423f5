"""Compute masks directly from the input of the last convolution of the pixel decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.convolution import Conv2d, convolve_3x3
from maskformer.modeling.maskformer import MaskFormer
from maskformer.modeling.outputs import MaskOutputs
from maskformer.modeling.transformer import Sizes
from mfkernels.checks import without_autocast
from mfkernels.ops.common.maps import CHANNELS


class DirectMaskFormer(MaskFormer):
    """A MaskFormer that predicts the masks of the final layer without pixel features.

    A mask is the product of an embedding and features, `e · (W * x + b)`. It equals
    `(e · W) * x + e · b`: a convolution with one filter per query instead of one per channel of the
    features, and no product after it. It runs in the precision of the weights.
    `use_direct_masks` converts a model to this class.
    """

    def forward(
        self,
        pixel_values: Tensor,
        with_mask_logits: bool = True,
        image_sizes: Sizes | None = None,
    ) -> MaskOutputs:
        """Compute class and mask logits; arguments and errors are those of `MaskFormer.forward`.

        `with_mask_logits` is ignored: the mask logits are always computed.

        Returns:
            `class_logits [1,B,Q,K+1]` and `mask_logits [1,B,Q,h,w]`.
        """
        outputs = super().forward(pixel_values, image_sizes=image_sizes)
        embed = outputs["mask_embed"][-1]
        maps = outputs["pixel_features"]  # the input of the last convolution, which is skipped
        with without_autocast(maps.device):
            masks = _masks(embed, maps, self.pixel_decoder.mask_features)
        return MaskOutputs(class_logits=outputs["class_logits"][-1:], mask_logits=masks[None])


class _SkippedConv2d(Conv2d):
    """A convolution that returns its input. It keeps the weights, which `_masks` uses, in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def direct_masks_are_cheaper(model: SegmentationModel) -> bool:
    """Whether `DirectMaskFormer` applies to a model and is faster: the last convolution of its
    pixel decoder was not replaced, and the queries are at most three quarters of the channels.
    """
    if type(model) is not MaskFormer:
        return False
    convolution = getattr(model.pixel_decoder, "mask_features", None)
    return (
        type(convolution) is Conv2d
        and convolution.is_3x3
        and convolution.bias is not None
        and 4 * model.config.decoder.queries <= 3 * convolution.out_channels
    )


def use_direct_masks(model: SegmentationModel) -> None:
    """Convert a model to a `DirectMaskFormer`, in place. Its weights keep their names."""
    model.pixel_decoder.mask_features.__class__ = _SkippedConv2d
    model.__class__ = DirectMaskFormer


def _masks(embed: Tensor, maps: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Compute mask logits `[B, Q, h, w]` from mask embeddings `[B, Q, C']` and maps
    `[B, C, h, w]`.
    """
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
