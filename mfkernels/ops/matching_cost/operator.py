"""The operator `matching_cost`; csrc/operator_schemas.cpp describes its arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfkernels.checks import check_focal, result_dtype
from mfkernels.ops.common.arguments import (
    check_argument,
    check_prediction_arguments,
    check_segments,
)
from mfkernels.ops.common.registration import register


class Inputs(NamedTuple):
    class_logits: Tensor
    mask_embed: Tensor
    pixel_features: Tensor | None
    label_map: Tensor | None
    masks: Tensor | None
    labels: Tensor
    counts: Tensor
    max_count: int
    class_weight: float
    mask_weight: float
    dice_weight: float
    alpha: float
    gamma: float


def check(*arguments: Any) -> None:
    given = Inputs(*arguments)
    like, masks, classes = given.mask_embed, given.masks, given.class_logits
    check_prediction_arguments(like, given.pixel_features)
    layers, images, queries = like.shape[:3]
    check_argument("class_logits", classes, (layers, images, queries, "K + 1"), like)
    if classes.shape[3] < 1:
        raise ValueError(f"class_logits must have classes, got {list(classes.shape)}")
    check_segments(given.label_map, masks, given.counts, like, images)
    segments = "N" if masks is None else masks.shape[0]
    check_argument("labels", given.labels, (segments,), like, torch.int64)
    if given.max_count < 0:
        raise ValueError(f"max_count must be at least 0, got {given.max_count}")
    check_focal(given.alpha, given.gamma)


def fake(*arguments: Any) -> Tensor:
    given = Inputs(*arguments)
    dtype = result_dtype(given.class_logits, given.mask_embed, given.pixel_features)
    shape = (*given.class_logits.shape[:3], given.max_count)
    return given.class_logits.new_empty(shape, dtype=dtype)


register(
    "matching_cost", check=check, fake=fake, triton="mfkernels.ops.matching_cost.triton_launch"
)
