"""Kernels that training compiles and starts, over simulated batches; nothing runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import Generator
from torch import Tensor

pytest.importorskip("triton")
from helpers.gpu.compiler import Launch, recorded, variant_of

from mfkernels.ops.class_loss.triton_launch import class_loss, class_loss_backward
from mfkernels.ops.loss_sums.triton_launch import loss_sums
from mfkernels.ops.mask_loss.triton_launch import mask_loss, mask_loss_backward
from mfkernels.ops.matching_cost.triton_launch import matching_cost

LAYERS, IMAGES, QUERIES, CLASSES, CHANNELS = 6, 16, 100, 133, 256
OTHERS = 6
"""Launches of a step that are not Triton's: test_triton_launches.py counts them."""


def meta(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launches_of_a_step(
    height: int, width: int, counts: list[int], dtype: torch.dtype
) -> list[Launch]:
    """Of the criterion and its backward pass, with targets of this size."""
    most = max(counts)
    class_logits = meta(LAYERS, IMAGES, QUERIES, CLASSES + 1, dtype=dtype)
    embed = meta(LAYERS, IMAGES, QUERIES, CHANNELS, dtype=dtype)
    features = meta(IMAGES, CHANNELS, height // 4, width // 4, dtype=dtype)
    label_map = meta(IMAGES, height, width, dtype=torch.int16)
    labels, assignment = meta(sum(counts)), meta(LAYERS, IMAGES, most)
    masks = (embed, features, label_map, None)
    options = (meta(IMAGES), assignment, sum(counts), 0.25, 2.0)
    with recorded() as launches:
        matching_cost(class_logits, *masks, labels, options[0], most, 1.0, 20.0, 1.0, 0.25, 2.0)
        focal, dice, *saved = mask_loss(*masks, *options, True)
        loss, weight, *of_classes = class_loss(class_logits, labels, *options[:2], 0.1)
        loss_sums(focal, dice, loss, weight, sum(counts), (1.0, 20.0, 1.0))
        slopes = (meta(LAYERS, dtype=torch.float32) for _ in range(2))
        spread = (slope[:, None, None].expand(focal.shape) for slope in slopes)
        mask_loss_backward(*spread, *saved, *masks, *options, True, True)
        class_loss_backward(loss, class_logits, *of_classes, 0.1)
    return launches


def batch_of_coco(random: Generator) -> tuple[int, int, list[int]]:
    """Multi-scale training: sides padded to the largest of a batch and to 32."""
    height = int(random.choice(range(480, 801, 32)))
    width = int(min(1333, height * random.uniform(1.0, 1.75)))
    if random.random() < 0.35:
        height, width = width, height
    height = max(height, int(random.choice(range(480, 801, 32))))
    width = max(width, int(random.choice(range(640, 1334))))
    counts = np.minimum(1 + random.negative_binomial(2, 2 / 13, IMAGES), 99)
    return -(-height // 32) * 32, -(-width // 32) * 32, counts.tolist()


def batch_of_ade20k(random: Generator) -> tuple[int, int, list[int]]:
    return 512, 512, (1 + random.poisson(8, IMAGES)).tolist()


@pytest.mark.parametrize(
    ("batch", "dtype", "variants", "launches"),
    [
        (batch_of_coco, torch.float32, 22, 23),
        (batch_of_coco, torch.bfloat16, 21, 22),
        (batch_of_ade20k, torch.float32, 19, 21),
        (batch_of_ade20k, torch.bfloat16, 18, 20),
    ],
)
def test_training(batch: Any, dtype: torch.dtype, variants: int, launches: int) -> None:
    """Over 500 batches; of those of COCO, the largest keep no maps for the backward pass."""
    random = np.random.default_rng(0)
    found: dict[str, str] = {}
    most = 0
    for _ in range(500):
        some = launches_of_a_step(*batch(random), dtype)
        most = max(most, len(some) + OTHERS)
        found |= {variant_of(launch): launch.name for launch in some}
    assert len(found) <= variants, Counter(found.values())
    assert most <= launches
