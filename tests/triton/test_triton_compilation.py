"""Triton kernels compiled ahead of time for GPUs that are not there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
import triton
from helpers.gpu.compiler import (
    ARCHITECTURES,
    SPILLED_ELSEWHERE,
    SPILLED_WHERE_FASTER,
    Launch,
    compile_launch,
    is_pinned,
    made_for,
    recorded,
    specialised,
    specialised_by_triton,
)
from helpers.gpu.launches import (
    meta,
    of_class_loss,
    of_focal_dice,
    of_mask_loss,
    of_matching_cost,
    of_panoptic,
    of_semantic,
)
from helpers.gpu.sass import instructions, longest_loop

from mfkernels.ops.mask_loss.triton_launch import mask_loss, mask_loss_backward
from mfkernels.triton.devices import KNOWN

OF_THE_PINNED = pytest.mark.skipif(not is_pinned(), reason="counts are those of the pinned Triton")


@pytest.fixture
def on_architecture(architecture: str) -> Iterator[None]:
    """What is launched is made for the GPU that it is compiled for."""
    with made_for(architecture):
        yield


def check(launch: Launch, architecture: str, *, tensor_cores: bool) -> None:
    compiled = compile_launch(launch, architecture)
    features = launch.arguments.get("features")
    dtype = None if features is None else features.ptr.dtype
    if compiled.spilled > SPILLED_WHERE_FASTER.get((architecture, launch.name, dtype), 0):
        message = f"{launch.name} spills {compiled.spilled} bytes on {architecture}"
        assert not is_pinned(), message
        assert compiled.spilled <= SPILLED_ELSEWHERE, message
        warnings.warn(f"{message} with Triton {triton.__version__}", stacklevel=2)
    assert compiled.shared <= KNOWN[architecture].shared_memory
    assert compiled.tensor_cores or not tensor_cores, f"{launch.name} has no matrix instruction"


@pytest.mark.usefixtures("on_architecture")
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
    dtype: torch.dtype, channels: int, count: int, label_map: bool, gamma: float, architecture: str
) -> None:
    *parts, sums, cost = of_matching_cost(dtype, channels, count, label_map, gamma)
    assert len(parts) == (channels > 0 and dtype == torch.float32)
    check(sums, architecture, tensor_cores=True)
    for launch in parts + ([cost] if channels == 256 else []):
        check(launch, architecture, tensor_cores=False)


@pytest.mark.usefixtures("on_architecture")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_86", "sm_120"])
@pytest.mark.parametrize(
    ("dtype", "count", "label_map"),
    [
        (torch.float32, 12, False),
        (torch.float16, 12, True),
        (torch.float16, 24, True),
        (torch.float16, 60, False),
    ],
)
def test_matching_cost_on_gpus_with_small_shared_memory(
    dtype: torch.dtype, count: int, label_map: bool, architecture: str
) -> None:
    launches = of_matching_cost(dtype, 256, count, label_map)
    for launch in launches:
        compiled = compile_launch(launch, architecture)
        assert compiled.shared <= KNOWN[architecture].shared_memory
        # Some more with other versions of Triton: slower, and as right.
        assert compiled.spilled <= SPILLED_ELSEWHERE or not is_pinned(), launch.name


@pytest.mark.usefixtures("on_architecture")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("count", [12, 100])
def test_matching_cost_of_channels_last(count: int, architecture: str) -> None:
    """Features in half precision are one part each: what lies so cannot be copied as it is."""
    launches = of_matching_cost(torch.bfloat16, 256, count, layout=torch.channels_last)
    parts, sums, _ = launches
    assert parts.arguments["PARTS"] == sums.arguments["VARIANT"].parts == 1
    for launch in launches:
        check(launch, architecture, tensor_cores=launch is sums)


@OF_THE_PINNED
@pytest.mark.parametrize(
    ("dtype", "count", "layout", "instructions", "programs"),
    [
        (torch.bfloat16, 12, torch.contiguous_format, 37, 2),
        (torch.bfloat16, 24, torch.contiguous_format, 42, 2),
        (torch.bfloat16, 60, torch.contiguous_format, 59, 1),
        (torch.bfloat16, 12, torch.channels_last, 37, 2),
        (torch.bfloat16, 24, torch.channels_last, 42, 2),
        (torch.float32, 12, torch.contiguous_format, 45, 1),
        (torch.float32, 24, torch.channels_last, 49, 1),
    ],
)
def test_budget_of_matching_cost(
    dtype: torch.dtype, count: int, layout: torch.memory_format, instructions: int, programs: int
) -> None:
    """Of an H100: instructions for each logit, and programs that a multiprocessor holds at once."""
    *_, sums, _ = of_matching_cost(dtype, 256, count, True, 2.0, layout=layout)
    check(sums, "sm_90", tensor_cores=True)
    compiled, block = compile_launch(sums, "sm_90"), sums.arguments["BLOCK"]
    threads = 32 * sums.options["num_warps"]
    loop = longest_loop(compiled.binary)
    assert loop["HGMMA"] >= 24
    assert loop.total() * threads / (block.rows * block.pixels) <= instructions
    registers = -(-compiled.registers // 8) * 8 * threads
    assert min(65536 // registers, (228 << 10) // (compiled.shared + 1024)) >= programs


MULTIPLY = {"logits_kernel", "grad_embed_kernel", "grad_features_kernel"}


@pytest.mark.usefixtures("on_architecture")
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
    dtype: torch.dtype,
    channels: int,
    count: int,
    label_map: bool,
    gamma: float,
    architecture: str,
) -> None:
    launches = of_mask_loss(dtype, channels, count, label_map, gamma)
    launches += of_mask_loss(dtype, channels, count, label_map, gamma, keep_maps=False)
    kernels = {(launch.name, launch.arguments.get("VARIANT")): launch for launch in launches}
    names = {name for name, _ in kernels}
    assert names >= (MULTIPLY if channels else {"scatter_kernel"}) | {"combine_kernel"}
    for (name, _), launch in kernels.items():
        check(launch, architecture, tensor_cores=name in MULTIPLY)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("keep_maps", [True, False])
def test_mask_loss_of_targets_of_another_size(keep_maps: bool, architecture: str) -> None:
    given = (torch.float32, 0, 12, True, 1.5)
    for launch in of_mask_loss(*given, ratio=3, keep_maps=keep_maps):
        check(launch, architecture, tensor_cores=False)


@pytest.mark.parametrize("keep_maps", [True, False])
@pytest.mark.parametrize("ratio", [1, 4])
def test_mask_loss_of_the_smallest_sizes(ratio: int, keep_maps: bool) -> None:
    """A number that is 1 is a constant of the kernel, not a tensor."""
    one = meta(1, 1, 1, dtype=torch.int64)
    masks = meta(1, ratio, ratio, dtype=torch.bool)
    inputs = (meta(1, 1, 1, 1), meta(1, 1, 1, 1), None, masks, one[0, 0], one, 1, 0.25, 2.0)
    with recorded() as launches:
        focal, dice, *saved = mask_loss(*inputs, keep_maps)
        mask_loss_backward(focal, dice, *saved, *inputs, True, True)
    assert len(launches) >= 7
    for launch in launches:
        compile_launch(launch, "sm_90")


INSTRUCTIONS_OF_PIXELS = {(True, 3): (4, 45), (False, 1): (4, 38), (True, 0): (16, 30)}
"""Target pixels of the innermost loop and instructions of one, by what is asked for.

That is sums and three maps, the gradient alone, sums alone. The loop is that over the four lines of
a cell, which the compiler unrolls if little is asked for.
"""


@pytest.mark.parametrize("asked", INSTRUCTIONS_OF_PIXELS)
def test_instructions_of_target_pixels(asked: tuple[bool, int]) -> None:
    """The kernels at target pixels are bound by the issue of instructions."""
    pixels, instructions = INSTRUCTIONS_OF_PIXELS[asked]
    given = (torch.bfloat16, 256, 12, True, 2.0)
    launches = [x for keep in (True, False) for x in of_mask_loss(*given, keep_maps=keep)]
    (launch,) = (
        launch
        for launch in launches
        if launch.name == "pixels_kernel"
        and (launch.arguments["VARIANT"].sums, launch.arguments["VARIANT"].maps) == asked
    )
    compiled = compile_launch(launch, "sm_90")
    assert longest_loop(compiled.binary).total() <= pixels * instructions
    assert 65536 // (compiled.registers * 32) >= 16, "too few warps at a time"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_class_loss(architecture: str) -> None:
    for launch in of_class_loss():
        check(launch, architecture, tensor_cores=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "targets_dtype", "gamma"),
    [(torch.float32, torch.bool, 2.0), (torch.bfloat16, torch.float32, 1.5)],
)
def test_focal_dice(
    dtype: torch.dtype, targets_dtype: torch.dtype, gamma: float, architecture: str
) -> None:
    launches = of_focal_dice(dtype, targets_dtype, gamma)
    assert len(launches) == 5
    for launch in launches:
        check(launch, architecture, tensor_cores=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "classes", "options"),
    [
        (torch.float32, 150, {}),
        (torch.bfloat16, 19, {"resized": True}),
        (torch.float32, 847, {"resized": True, "views": 2}),
        (torch.float16, 150, {"scores": True, "channels": 0}),
        (torch.float32, 150, {"resized": True, "resize_logits": True}),
        (torch.bfloat16, 150, {"low": (1024, 2048)}),
    ],
)
@pytest.mark.usefixtures("on_architecture")
def test_semantic_segmentation(
    dtype: torch.dtype, classes: int, options: dict[str, Any], architecture: str
) -> None:
    launches = of_semantic(dtype, classes, **options)
    views = options.get("views", 1)
    products = ["embed_kernel", "by_pixel_kernel"]
    per_view = [
        "prepare_kernel",
        *(products if options.get("channels", 256) else ["transpose_kernel"]),
    ]
    certain = [] if options.get("scores") else ["extremes_kernel"] * views + ["certain_kernel"]
    names = [launch.name for launch in launches]
    assert names == per_view * views + certain + ["semantic_kernel"]
    multiply = {"semantic_kernel", "by_pixel_kernel", "certain_kernel"}
    for launch in {launch.name: launch for launch in launches}.values():
        check(launch, architecture, tensor_cores=launch.name in multiply)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_86", "sm_120"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.usefixtures("on_architecture")
def test_semantic_segmentation_fits_small_shared_memory(
    dtype: torch.dtype, architecture: str
) -> None:
    for options in ({"classes": 150}, {"classes": 847, "resized": True}):
        for launch in of_semantic(dtype, **options):
            compiled = compile_launch(launch, architecture)
            assert compiled.shared <= KNOWN[architecture].shared_memory, launch.name


@OF_THE_PINNED
def test_instructions_of_semantic_segmentation() -> None:
    """For 32 classes of a tile of pixels, for all before and after, and for 32 channels."""
    launches = {launch.name: launch for launch in of_semantic(torch.float32, 150)}
    semantic = launches["semantic_kernel"]
    compiled = compile_launch(semantic, "sm_90")
    loop = sum(longest_loop(compiled.binary).values())
    assert loop <= 250
    assert sum(instructions(compiled.binary).values()) - loop <= 880
    # Four programs share the registers of a multiprocessor.
    assert 4 * compiled.registers * 32 * semantic.options["num_warps"] <= 65536
    by_pixel = compile_launch(launches["by_pixel_kernel"], "sm_90")
    assert sum(longest_loop(by_pixel.binary).values()) <= 360


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "resized"), [(torch.float32, False), (torch.bfloat16, True)])
def test_panoptic_owners(dtype: torch.dtype, resized: bool, architecture: str) -> None:
    launches = of_panoptic(dtype, resized=resized)
    assert [launch.name for launch in launches] == [
        "keep_kernel",
        "embed_kernel",
        "by_pixel_kernel",
        "owners_kernel",
    ]
    for launch in launches:
        check(launch, architecture, tensor_cores=launch.name == "by_pixel_kernel")


def test_arguments_are_specialised_as_triton_does() -> None:
    """Field by field in named tuples, too: what is 1, what divides by 16, what needs 64 bits."""
    launches = of_mask_loss(torch.bfloat16, 0, 12, True, 1.5)
    launches += of_mask_loss(torch.float32, 256, 12, False, 2.0)
    launches += of_semantic(torch.float32, 150, resized=True)
    for launch in launches:
        for parameter in launch.kernel.params:
            if not parameter.is_constexpr:
                value = launch.arguments[parameter.name]
                assert specialised(value) == specialised_by_triton(value), parameter.name


def test_every_launch_says_whether_products_and_sums_are_fused() -> None:
    launches = of_matching_cost(torch.bfloat16, 256, 12, True, 2.0)
    assert [launch.options["enable_fp_fusion"] for launch in launches] == [True, True]


def test_number_of_launches() -> None:
    """At batch 16 of ADE20K; what is larger goes in groups of images."""
    cost = of_matching_cost(torch.bfloat16, 256, 12, True, 2.0)
    loss = of_mask_loss(torch.bfloat16, 256, 12, True, 2.0)
    assert [launch.name for launch in cost] == ["sums_kernel", "cost_kernel"]
    cost = of_matching_cost(torch.float32, 256, 12, True, 2.0)
    assert [launch.name for launch in cost] == ["parts_kernel", "sums_kernel", "cost_kernel"]
    assert [launch.name for launch in loss] == [
        *("logits_kernel", "members_kernel", "pixels_kernel", "totals_kernel"),
        "combine_kernel",
        "grad_embed_kernel",
        "grad_features_kernel",
        "grad_embed_sum_kernel",
    ]
    assert len(of_class_loss()) == 3
    assert len(of_mask_loss(torch.bfloat16, 256, 60, True, 2.0)) > len(loss)
