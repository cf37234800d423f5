"""Test-time augmentation of semantic segmentation: several sizes of an image, and their mirror
images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskformer.config import ViewsConfig
from maskformer.data import EvalTransform, Normalize
from maskformer.inference import Outputs, View, averaged_semantic_map
from maskformer.model import SegmentationModel
from mfkernels import mask_logits


def semantic_map_of_views(
    model: SegmentationModel,
    image: Tensor,
    config: ViewsConfig,
    device: torch.device,
    *,
    resize_logits: bool,
) -> Tensor:
    """Class of every pixel by the mean score over all views (the official rule).

    Each view runs alone, padded as far as its own size needs; its scores, not its logits, are
    mirrored back and averaged at the image's size.

    Args:
        model: on `device`, in evaluation mode.
        image: `[3, H, W]` uint8, as it was read.
        config: which views.
        resize_logits: as in `mfkernels.semantic_segmentation`.

    Returns:
        `[H, W]` int64.
    """
    normalize = Normalize.from_config(model.config)
    views = []
    for short_side in config.short_sides:
        resized = EvalTransform(short_side, config.max_side)(image)
        for flipped in (False, True)[: 1 + config.flip]:
            pixel_values = normalize([resized.flip(-1) if flipped else resized]).to(device)
            views.append(
                View(
                    _kept(model(pixel_values)),
                    input_size=(pixel_values.shape[-2], pixel_values.shape[-1]),
                    image_size=(resized.shape[-2], resized.shape[-1]),
                    flipped=flipped,
                )
            )
    return averaged_semantic_map(
        views, (image.shape[-2], image.shape[-1]), resize_logits=resize_logits
    )


def _kept(outputs: Outputs) -> Outputs:
    """The last layer, in the smaller of two forms: all views wait in memory for the last one."""
    if "pixel_logits" in outputs:
        return {"pixel_logits": outputs["pixel_logits"][-1:]}
    last = {name: outputs[name][-1:] for name in ("class_logits", "mask_embed")}
    embed, features = last["mask_embed"], outputs["pixel_features"]
    if embed.shape[-2] > embed.shape[-1]:  # more queries than channels
        return {**last, "pixel_features": features}
    return {"class_logits": last["class_logits"], "mask_logits": mask_logits(embed, features)}
