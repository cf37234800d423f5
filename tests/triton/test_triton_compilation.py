"""Triton kernels compiled ahead of time for GPUs that are not there."""

from __future__ import annotations

import warnings
from unittest import mock

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
import triton
from helpers.gpu.compiler import (
    ARCHITECTURES,
    SHARED_MEMORY,
    SPILLED_ELSEWHERE,
    Launch,
    compile_launch,
    is_pinned,
    longest_loop,
    recorded,
    specialised,
    specialised_by_triton,
)

from mfkernels.ops.class_loss.triton_launch import class_loss, class_loss_backward
from mfkernels.ops.focal_dice import triton_launch as focal_dice
from mfkernels.ops.mask_loss.triton_launch import mask_loss, mask_loss_backward
from mfkernels.ops.matching_cost.triton_launch import matching_cost
from mfkernels.ops.segmentation import triton_launch as segmentation
from mfkernels.triton.tensors import Gpu

LAYERS, IMAGES, QUERIES, CLASSES = 6, 16, 100, 150


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def predictions(dtype: torch.dtype, channels: int) -> tuple[Tensor, Tensor | None]:
    """Factors, or dense logits for 0 channels, in the sizes of ADE20K at batch 16."""
    if channels == 0:
        return meta(LAYERS, IMAGES, QUERIES, 128, 128, dtype=dtype), None
    embed = meta(LAYERS, IMAGES, QUERIES, channels, dtype=dtype)
    return embed, meta(IMAGES, channels, 128, 128, dtype=dtype)


def segments(count: int, label_map: bool) -> tuple[Tensor | None, Tensor | None]:
    if label_map:
        return meta(IMAGES, 512, 512, dtype=torch.int16), None
    return None, meta(IMAGES * count, 512, 512, dtype=torch.bool)


def launches_of_matching_cost(
    dtype: torch.dtype,
    channels: int,
    count: int,
    label_map: bool,
    gamma: float,
    architecture: int = 90,
) -> list[Launch]:
    gpu = Gpu(divmod(architecture, 10), SHARED_MEMORY[architecture])
    with recorded() as launches, mock.patch.object(Gpu, "of", return_value=gpu):
        matching_cost(
            meta(LAYERS, IMAGES, QUERIES, CLASSES + 1, dtype=dtype),
            *predictions(dtype, channels),
            *segments(count, label_map),
            meta(IMAGES * count, dtype=torch.int64),
            meta(IMAGES, dtype=torch.int64),
            count,
            *(1.0, 20.0, 1.0, 0.25, gamma),
        )
    return launches


def check(launch: Launch, architecture: int, *, tensor_cores: bool) -> None:
    compiled = compile_launch(launch, architecture)
    if compiled.spilled > 0:
        message = f"{launch.name} spills {compiled.spilled} bytes on sm_{architecture}"
        assert not is_pinned(), message
        assert compiled.spilled <= SPILLED_ELSEWHERE, message
        warnings.warn(f"{message} with Triton {triton.__version__}", stacklevel=2)
    assert compiled.shared <= SHARED_MEMORY[architecture]
    assert compiled.tensor_cores or not tensor_cores, f"{launch.name} has no matrix instruction"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "channels", "count", "label_map", "gamma"),
    [
        (torch.float32, 256, 12, True, 2.0),
        (torch.float32, 256, 100, False, 2.0),
        (torch.float32, 0, 24, True, 2.0),
        (torch.bfloat16, 256, 12, True, 2.0),
        (torch.bfloat16, 256, 100, True, 1.5),
        (torch.bfloat16, 512, 24, False, 2.0),
    ],
)
def test_matching_cost(
    dtype: torch.dtype, channels: int, count: int, label_map: bool, gamma: float, architecture: int
) -> None:
    case = (dtype, channels, count, label_map, gamma, architecture)
    *parts, sums, cost = launches_of_matching_cost(*case)
    assert len(parts) == (dtype == torch.float32 and channels > 0)
    check(sums, architecture, tensor_cores=True)
    for launch in parts + ([cost] if channels == 256 else []):
        check(launch, architecture, tensor_cores=False)


@pytest.mark.parametrize("architecture", [75, 86])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_matching_cost_fits_into_small_shared_memory(dtype: torch.dtype, architecture: int) -> None:
    *_, sums, _ = launches_of_matching_cost(dtype, 256, 12, False, 2.0, architecture)
    assert compile_launch(sums, architecture).shared <= SHARED_MEMORY[architecture]


@pytest.mark.parametrize(
    ("dtype", "count", "instructions", "programs"),
    [(torch.bfloat16, 12, 37, 2), (torch.bfloat16, 24, 42, 2), (torch.float32, 12, 45, 1)],
)
def test_budget_of_matching_cost(
    dtype: torch.dtype, count: int, instructions: int, programs: int
) -> None:
    """Of an H100: instructions for each logit, and programs that a multiprocessor holds at once."""
    *_, sums, _ = launches_of_matching_cost(dtype, 256, count, True, 2.0)
    check(sums, 90, tensor_cores=True)
    compiled, block = compile_launch(sums, 90), sums.arguments["BLOCK"]
    threads = 32 * sums.options["num_warps"]
    loop = longest_loop(compiled)
    assert sum(name.startswith("HGMMA") for name in loop) >= 32
    assert len(loop) * threads / (block.rows * block.pixels) <= instructions
    registers = -(-compiled.registers // 8) * 8 * threads
    assert min(65536 // registers, (228 << 10) // (compiled.shared + 1024)) >= programs


def launches_of_mask_loss(
    dtype: torch.dtype, channels: int, count: int, label_map: bool, gamma: float
) -> list[Launch]:
    shape = (LAYERS, IMAGES, count)
    inputs = (
        *predictions(dtype, channels),
        *segments(count, label_map),
        meta(IMAGES, dtype=torch.int64),
        meta(*shape, dtype=torch.int64),
        *(0.25, gamma),
    )
    with recorded() as launches:
        sums = mask_loss(*inputs)[2]
        mask_loss_backward(meta(*shape), meta(*shape), sums, *inputs, True, channels > 0)
    return launches


MULTIPLY = {"logits_kernel", "grad_embed_kernel", "grad_features_kernel"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "channels", "count", "label_map", "gamma"),
    [
        (torch.float32, 256, 12, True, 2.0),
        (torch.bfloat16, 256, 12, False, 2.0),
        (torch.bfloat16, 0, 12, True, 1.5),
    ],
)
def test_mask_loss(
    dtype: torch.dtype, channels: int, count: int, label_map: bool, gamma: float, architecture: int
) -> None:
    launches = launches_of_mask_loss(dtype, channels, count, label_map, gamma)
    kernels = {launch.name: launch for launch in launches}
    assert kernels.keys() >= (MULTIPLY if channels else {"scatter_kernel"})
    for name, launch in kernels.items():
        check(launch, architecture, tensor_cores=name in MULTIPLY)


def launches_of_class_loss() -> list[Launch]:
    class_logits = meta(LAYERS, IMAGES, QUERIES, CLASSES + 1)
    labels, counts = meta(IMAGES * 12, dtype=torch.int64), meta(IMAGES, dtype=torch.int64)
    assignment = meta(LAYERS, IMAGES, 12, dtype=torch.int64)
    with recorded() as launches:
        _, _, *saved = class_loss(class_logits, labels, counts, assignment, 0.1)
        class_loss_backward(meta(LAYERS), class_logits, *saved, 0.1)
    return launches


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_class_loss(architecture: int) -> None:
    for launch in launches_of_class_loss():
        check(launch, architecture, tensor_cores=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "targets_dtype", "gamma"),
    [(torch.float32, torch.bool, 2.0), (torch.bfloat16, torch.float32, 1.5)],
)
def test_focal_dice(
    dtype: torch.dtype, targets_dtype: torch.dtype, gamma: float, architecture: int
) -> None:
    logits, targets = (meta(864, 512 * 512, dtype=kind) for kind in (dtype, targets_dtype))
    options = (targets, 0.25, gamma)
    with recorded() as launches:
        focal, dice, sums = focal_dice.focal_dice(logits, *options)
        focal_dice.focal_dice_backward(focal, dice, sums, logits, *options)
        loss = focal_dice.sigmoid_focal_loss(logits, *options)
        focal_dice.sigmoid_focal_loss_backward(loss, logits, *options)
    assert len(launches) == 5
    for launch in launches:
        check(launch, architecture, tensor_cores=False)


def launches_of_semantic(
    dtype: torch.dtype,
    classes: int,
    *,
    resized: bool = False,
    scores: bool = False,
    views: int = 1,
    factored: bool = True,
) -> list[Launch]:
    """At 1024x2048 with 100 queries."""
    pixels = (256, 512)
    embed = meta(QUERIES, *((256,) if factored else pixels), dtype=dtype)
    features = [meta(256, *pixels, dtype=dtype)] * views if factored else []
    image = (1024 - resized, 2048)
    with recorded() as launches:
        segmentation.semantic_segmentation(
            [meta(QUERIES, classes)] * views,
            [embed] * views,
            features,
            *([side] * views for side in (1024, 2048, *image)),
            [False] * views,
            *(1024, 2048, False, scores),
        )
    return launches


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "classes", "options"),
    [
        (torch.float32, 150, {}),
        (torch.bfloat16, 19, {"resized": True}),
        (torch.float32, 847, {"resized": True, "views": 2}),
        (torch.float16, 150, {"scores": True, "factored": False}),
    ],
)
def test_semantic_segmentation(
    dtype: torch.dtype, classes: int, options: dict[str, bool], architecture: int
) -> None:
    launches = launches_of_semantic(dtype, classes, **options)
    names = [launch.name for launch in launches]
    per_view = ["bounds_kernel", "prepare_kernel", "by_pixel_kernel"]
    assert names == per_view * options.get("views", 1) + ["semantic_kernel"] * (
        1 if options.get("scores") else 2
    )
    multiply = {"semantic_kernel"} | (
        {"by_pixel_kernel"} if options.get("factored", True) else set()
    )
    for launch in launches[:3] + launches[-2:]:
        check(launch, architecture, tensor_cores=launch.name in multiply)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "resized"), [(torch.float32, False), (torch.bfloat16, True)])
def test_panoptic_owners(dtype: torch.dtype, resized: bool, architecture: int) -> None:
    with recorded() as launches:
        segmentation.panoptic_owners(
            meta(QUERIES),
            meta(QUERIES, 256, dtype=dtype),
            meta(256, 200, 272, dtype=dtype),
            *(800, 1088, 800 - resized, 1088),
            *(800, 1088, resized),
        )
    assert [launch.name for launch in launches] == [
        "keep_kernel",
        "by_pixel_kernel",
        "owners_kernel",
    ]
    for launch in launches:
        check(launch, architecture, tensor_cores=launch.name == "by_pixel_kernel")


def test_arguments_are_specialised_as_triton_does() -> None:
    """Field by field in named tuples, too: what is 1, what divides by 16, what needs 64 bits."""
    launches = launches_of_mask_loss(torch.bfloat16, 0, 12, True, 1.5)
    launches += launches_of_mask_loss(torch.float32, 256, 12, False, 2.0)
    launches += launches_of_semantic(torch.float32, 150, resized=True)
    for launch in launches:
        for parameter in launch.kernel.params:
            if not parameter.is_constexpr:
                value = launch.arguments[parameter.name]
                assert specialised(value) == specialised_by_triton(value), parameter.name


def test_every_launch_says_whether_products_and_sums_are_fused() -> None:
    launches = launches_of_matching_cost(torch.bfloat16, 256, 12, True, 2.0)
    assert [launch.options["enable_fp_fusion"] for launch in launches] == [True, True]


def test_number_of_launches() -> None:
    """At batch 16 of ADE20K; what is larger goes in groups of images."""
    cost = launches_of_matching_cost(torch.bfloat16, 256, 12, True, 2.0)
    loss = launches_of_mask_loss(torch.bfloat16, 256, 12, True, 2.0)
    assert [launch.name for launch in cost] == ["sums_kernel", "cost_kernel"]
    cost = launches_of_matching_cost(torch.float32, 256, 12, True, 2.0)
    assert [launch.name for launch in cost] == ["parts_kernel", "sums_kernel", "cost_kernel"]
    assert [launch.name for launch in loss] == [
        *("logits_kernel", "loss_kernel", "totals_kernel"),
        "logits_kernel",
        "grad_logits_kernel",
        "grad_embed_kernel",
        "grad_features_kernel",
        "grad_embed_sum_kernel",
    ]
    assert len(launches_of_class_loss()) == 3
    assert len(launches_of_mask_loss(torch.bfloat16, 256, 60, True, 2.0)) > len(loss)
