"""Every Triton operator on a real GPU: registration, CUDA graphs, no waiting, inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.strategies import Case
from torch import Tensor

from mfkernels import (
    MaskFormerCriterion,
    focal_dice_loss,
    panoptic_segmentation,
    semantic_segmentation,
    sigmoid_focal_loss,
    use_backend,
)
from mfkernels.ops.common.registration import SERVED_BY_TRITON

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

DEVICE = "cuda"
CASE = Case(counts=(3, 0, 2), queries=9, channels=20, low=(7, 9), size=(28, 33))


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    with use_backend("native"):
        yield


def on_device(*tensors: Tensor, grad: bool = False) -> list[Tensor]:
    return [x.to(DEVICE).requires_grad_(grad and x.is_floating_point()) for x in tensors]


def calls() -> dict[str, tuple[Any, ...]]:
    """Arguments of each operator that has a gradient or none, label maps and masks."""
    class_logits, embed, features = on_device(*CASE.predictions(), grad=True)
    targets = CASE.targets().to(DEVICE)
    counts = targets.counts_tensor()
    assignment = torch.tensor([0, 4, -1], device=DEVICE).expand(2, 3, 3).contiguous()
    segments = (targets.label_map, targets.masks)
    logits, values = on_device(torch.randn(4, 700), torch.rand(4, 700))
    logits.requires_grad_()
    probabilities = class_logits[0, 0].detach().softmax(-1)[:, :-1]
    sides = (28, 36, 28, 33)
    factors = (embed[0, 0].detach(), features[0].detach())
    return {
        "matching_cost": (
            *(x.detach() for x in (class_logits, embed, features)),
            *segments,
            targets.labels,
            counts,
            targets.max_count,
            *(1.0, 20.0, 1.0, 0.25, 2.0),
        ),
        # Of maps only what belongs to matched segments is written, and opcheck compares all.
        "mask_loss": (
            *(embed, features, *segments, counts, assignment, len(targets.labels)),
            *(0.25, 2.0, False),
        ),
        "class_loss": (class_logits, targets.labels, counts, assignment, 0.1),
        "focal_dice": (logits, values, 0.25, 2.0),
        "sigmoid_focal_loss": (logits, values > 0.5, 0.25, 1.5),
        "semantic_segmentation": (
            [probabilities / 2] * 2,
            [factors[0]] * 2,
            [factors[1]] * 2,
            *([side] * 2 for side in sides),
            [False, True],
            *(28, 33, False, True),
        ),
        "panoptic_owners": (probabilities.amax(1), *factors, *sides, 30, 31, True),
    }


@pytest.mark.parametrize("name", [name for name in SERVED_BY_TRITON if "backward" not in name])
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.mfkernels, name).default, calls()[name])


def replayed(function: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """The graph of a function after some calls outside it, and where its results will be."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


def assert_captured(function: Callable[[], list[Tensor]], inputs: list[Tensor]) -> None:
    """The graph gives what a call gives, also for inputs that came after its capture."""
    graph, results = replayed(function)
    for _ in range(2):
        graph.replay()
        for result, expected in zip(results, function(), strict=True):
            assert torch.equal(result, expected)
        with torch.no_grad():
            for x in inputs:
                x.copy_(x.flip(0) * 0.7)


def test_graph_and_no_waiting_of_criterion_and_backward() -> None:
    inputs = on_device(*CASE.predictions(), grad=True)
    names = ("class_logits", "mask_embed", "pixel_features")
    criterion = MaskFormerCriterion(CASE.classes).to(DEVICE)
    targets = CASE.targets().to(DEVICE)

    def step() -> list[Tensor]:
        total = criterion.total(criterion(dict(zip(names, inputs, strict=True)), targets))
        return [total.detach(), *torch.autograd.grad(total, inputs)]

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_captured(step, inputs)


@pytest.mark.parametrize("name", ["semantic_segmentation", "panoptic_owners", "focal_dice"])
def test_graph_of_an_operator(name: str) -> None:
    given = calls()[name]
    operator = getattr(torch.ops.mfkernels, name)
    changing = given[0][0] if name == "semantic_segmentation" else given[0]
    assert_captured(lambda: list(operator(*given)), [changing.detach()])


def test_no_waiting_of_semantic_segmentation() -> None:
    class_logits, embed, features = on_device(*CASE.predictions())
    given = (class_logits[0], embed[0], features, (28, 33))
    semantic_segmentation(*given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        semantic_segmentation(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_focal_dice(dtype: torch.dtype, soft: bool, gamma: float) -> None:
    """Long rows that need several programs, and a row of odd length."""
    for shape in ((3, 100_000), (70, 1_111)):
        generator = torch.Generator().manual_seed(0)
        logits = (4 * torch.randn(shape, generator=generator)).to(DEVICE, dtype)
        targets = torch.rand(shape, generator=generator).to(DEVICE)
        targets = targets if soft else targets > 0.8

        def everything(
            compute: torch.dtype, logits: Tensor = logits, targets: Tensor = targets
        ) -> list[Tensor]:
            x = logits.to(compute).requires_grad_()
            mask, dice = focal_dice_loss(x, targets, alpha=0.25, gamma=gamma)
            (gradients,) = torch.autograd.grad(20 * mask + dice, x)
            each = sigmoid_focal_loss(x, targets, 0.25, gamma)
            (gradient,) = torch.autograd.grad(each.sum(), x)
            return [mask.detach(), dice.detach(), gradients, each.detach(), gradient]

        with use_backend("reference"):
            truth, plain = everything(torch.float64), everything(dtype)
        ours, again = everything(dtype), everything(dtype)
        for result, same, exact, repeated in zip(ours, plain, truth, again, strict=True):
            assert torch.equal(result, repeated), "must be deterministic"
            slack = 8 * 2**-23 * exact.abs().max()
            assert (result - exact).abs().max() <= 2 * (same - exact).abs().max() + slack


Size = tuple[int, int]
SIZES = [
    ((64, 96), (256, 384), (256, 384), (256, 384)),
    ((33, 41), (132, 164), (120, 163), (201, 97)),
    ((20, 20), (17, 19), (17, 19), (33, 40)),
]
"""Of the mask, the padded input, the image and the result."""


def predictions(
    low: tuple[int, int], classes: int, structured: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of two images; structured: few queries matter, each somewhere else."""
    generator = torch.Generator().manual_seed(classes)
    class_logits = torch.randn(2, 100, classes + 1, generator=generator)
    embed = torch.randn(2, 100, 64, generator=generator)
    features = torch.randn(2, 64, *low, generator=generator)
    if structured:
        class_logits[..., -1] += 8
        class_logits[:, :12] = 8 * torch.eye(classes + 1)[torch.arange(12) % classes]
        centre = torch.rand(2, 12, 2, generator=generator)
        y, x = (torch.linspace(0, 1, n) for n in low)
        near = (y[:, None] - centre[..., :1, None]) ** 2 + (x - centre[..., 1:, None]) ** 2
        features[:, :12] = 6 - 100 * near
        embed[:, :12] = torch.eye(12, 64)
    return tuple(x.to(DEVICE) for x in (class_logits, embed, features))


@pytest.mark.parametrize("resize_logits", [False, True])
@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("classes", [1, 19, 150, 847])
@pytest.mark.parametrize("sizes", SIZES)
def test_semantic_segmentation(
    sizes: tuple[Size, Size, Size, Size], classes: int, structured: bool, resize_logits: bool
) -> None:
    low, padded, image, size = sizes
    given = (*predictions(low, classes, structured), size)
    options: dict[str, Any] = {"input_size": padded, "image_sizes": [image, image]}
    options["resize_logits"] = resize_logits
    with use_backend("reference"):
        _, truth = semantic_segmentation(
            *(x.double() for x in given[:3]), size, return_scores=True, **options
        )
    labels = semantic_segmentation(*given, **options)
    assert isinstance(labels, Tensor)
    assert torch.equal(labels, semantic_segmentation(*given, **options)), "must be deterministic"
    lost = truth.amax(1) - truth.gather(1, labels[:, None])[:, 0]
    assert lost.max() < 1e-5
    full, scores = semantic_segmentation(*given, return_scores=True, **options)
    torch.testing.assert_close(scores.double(), truth, rtol=1e-5, atol=1e-5)
    assert (truth.amax(1) - truth.gather(1, full[:, None])[:, 0]).max() < 1e-5


@pytest.mark.parametrize("channels", [70, 256])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_precision(
    dtype: torch.dtype, layout: torch.memory_format, channels: int
) -> None:
    """Maps with an odd number of pixels cannot be copied 16 bytes at a time, and many channels take
    several steps. Triton 3.6 once gave wrong sums there (benchmarks/NOTES.md, round 4).
    """
    generator = torch.Generator().manual_seed(channels)
    shapes = ((2, 100, 20), (2, 100, channels), (2, channels, 37, 29))
    class_logits, embed, features = (
        torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes
    )
    embed = embed / channels**0.5
    features = features.contiguous(memory_format=layout)
    given = (class_logits, embed, features)
    with use_backend("reference"):
        exact = (x.double() for x in given)
        _, truth = semantic_segmentation(*exact, (148, 116), return_scores=True)
    _, scores = semantic_segmentation(*given, (148, 116), return_scores=True)
    torch.testing.assert_close(scores.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("paint", ["maskformer", "mask2former"])
@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_panoptic_segmentation(
    sizes: tuple[Size, Size, Size, Size], structured: bool, paint: str
) -> None:
    low, padded, image, size = sizes
    given = predictions(low, 19, structured)
    options: dict[str, Any] = {
        "input_size": padded,
        "image_sizes": [image, image],
        "thing_classes": range(8),
        "object_mask_threshold": 0.8 if structured else 0.2,
        "overlap_threshold": 0.8 if structured else 0.1,
        "paint": paint,
    }
    with use_backend("reference"):
        expected = panoptic_segmentation(*(x.double() for x in given), size, **options)
    for (ours, segments), (truth, same) in zip(
        panoptic_segmentation(*given, size, **options), expected, strict=True
    ):
        # A pixel where two queries are equal to float32's precision may go to either.
        assert (ours != truth).float().mean() < 1e-4
        assert [{**s, "score": 0} for s in segments] == [{**s, "score": 0} for s in same]
        for one, other in zip(segments, same, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-6)
