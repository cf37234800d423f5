"""The operator `matching_cost`; csrc/torch_library.cpp describes its arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels.checks import check_focal, result_dtype
from mfkernels.ops.common.arguments import (
    check_argument,
    check_prediction_arguments,
    check_segments,
)
from mfkernels.ops.common.registration import register


def check(
    class_logits: Tensor,
    mask_embed: Tensor,
    pixel_features: Tensor | None,
    label_map: Tensor | None,
    masks: Tensor | None,
    labels: Tensor,
    counts: Tensor,
    max_count: int,
    *weights_alpha_gamma: float,
) -> None:
    check_prediction_arguments(mask_embed, pixel_features)
    layers, images, queries = mask_embed.shape[:3]
    check_argument("class_logits", class_logits, (layers, images, queries, "K + 1"), mask_embed)
    if class_logits.shape[3] < 1:
        raise ValueError(f"class_logits must have classes, got {list(class_logits.shape)}")
    check_segments(label_map, masks, counts, mask_embed, images)
    segments = "N" if masks is None else masks.shape[0]
    check_argument("labels", labels, (segments,), mask_embed, torch.int64)
    if max_count < 0:
        raise ValueError(f"max_count must be at least 0, got {max_count}")
    check_focal(*weights_alpha_gamma[3:])


def fake(
    class_logits: Tensor, mask_embed: Tensor, pixel_features: Tensor | None, *others: Any
) -> Tensor:
    _label_map, _masks, _labels, _counts, max_count, *_ = others
    dtype = result_dtype(class_logits, mask_embed, pixel_features)
    return class_logits.new_empty((*class_logits.shape[:3], max_count), dtype=dtype)


register(
    "matching_cost", check=check, fake=fake, triton="mfkernels.ops.matching_cost.triton_launch"
)
