"""Kernels that training compiles and starts, over simulated batches; nothing runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import Generator
from torch import Tensor

pytest.importorskip("triton")
from helpers.gpu.compiler import Launch, recorded, variant_of

from mfkernels.graphs import counts_to_try
from mfkernels.ops.class_loss.triton_launch import class_loss, class_loss_backward
from mfkernels.ops.loss_sums.triton_launch import loss_sums
from mfkernels.ops.mask_loss.operator import most_kept
from mfkernels.ops.mask_loss.triton_launch import mask_loss, mask_loss_backward
from mfkernels.ops.matching_cost.triton_launch import matching_cost
from mfkernels.ops.segmentation.triton_launch import panoptic_owners, semantic_segmentation

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


def variants_of(steps: Iterable[list[Launch]]) -> set[str]:
    return {variant_of(launch) for launches in steps for launch in launches}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_warmup_compiles_what_training_needs(dtype: torch.dtype) -> None:
    """Of batches whose sizes are multiples of 32, as the padded ones of COCO are."""
    random = np.random.default_rng(1)
    needed = variants_of(launches_of_a_step(*batch_of_coco(random), dtype) for _ in range(300))
    tried = counts_to_try(IMAGES, 100, most_kept(LAYERS, 200 * 336))
    compiled = variants_of(launches_of_a_step(800, 1344, list(counts), dtype) for counts in tried)
    assert needed <= compiled


def launches_of_inference(width: int, height: int, classes: int, *, panoptic: bool) -> list[Launch]:
    """Of an image whose short side becomes 512 pixels, in multiples of 32."""
    scale = 512 / min(width, height)
    image = [round(side * scale) for side in (height, width)]
    padded = [-(-side // 32) * 32 for side in image]
    low = [side // 4 for side in padded]
    embed = meta(QUERIES, CHANNELS, dtype=torch.float32)
    features = meta(CHANNELS, *low, dtype=torch.float32)
    with recorded() as launches:
        if panoptic:
            scores = meta(QUERIES, dtype=torch.float32)
            panoptic_owners(scores, embed, features, *padded, *image, height, width, False)
        else:
            probability = meta(QUERIES, classes, dtype=torch.float32)
            sides = [[side] for side in (*padded, *image)]
            views = ([probability], [embed], [features], *sides, [False])
            semantic_segmentation(*views, height, width, False, False)
    return launches


@pytest.mark.parametrize(("panoptic", "variants"), [(False, 15), (True, 5)])
def test_inference(panoptic: bool, variants: int) -> None:
    """On 300 images of any size."""
    random = np.random.default_rng(0)
    sizes = random.integers(200, 1500, (300, 2)).tolist()
    found = variants_of(launches_of_inference(*size, 150, panoptic=panoptic) for size in sizes)
    assert len(found) <= variants
