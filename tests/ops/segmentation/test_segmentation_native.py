"""The C++ kernels of inference: the official results on every processor, for every input."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mfkernels import (
    SegmentationView,
    average_semantic_segmentation,
    panoptic_segmentation,
    semantic_segmentation,
    use_backend,
)
from mfkernels.backend import why_not_native

reason = why_not_native("semantic_segmentation", "cpu")
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

Size = tuple[int, int]
NEAR = 1e-5
"""Labels may differ where the two best scores differ by less."""


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    with use_backend("native"):
        yield


class Problem(NamedTuple):
    """Predictions for one image and where it lies."""

    class_logits: Tensor
    mask_embed: Tensor
    pixel_features: Tensor
    input_size: Size
    image_size: Size
    size: Size

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Of the padded input and of the image."""
        return *self.input_size, *self.image_size

    @property
    def options(self) -> dict[str, Any]:
        return {"input_size": self.input_size, "image_sizes": [self.image_size]}

    def to(self, dtype: torch.dtype) -> Problem:
        return self._replace(
            class_logits=self.class_logits.to(dtype),
            mask_embed=self.mask_embed.to(dtype),
            pixel_features=self.pixel_features.to(dtype),
        )


def random_problem(
    queries: int = 13,
    classes: int = 7,
    low: Size = (19, 23),
    input_size: Size = (76, 92),
    image_size: Size = (71, 90),
    size: Size = (71, 90),
    channels: int = 24,
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator)

    class_logits = 2 * draw(queries, classes + 1)
    embed, features = draw(queries, channels), draw(channels, *low)
    return Problem(class_logits, embed, features, input_size, image_size, size)


def dense_logits(problem: Problem) -> Tensor:
    return torch.einsum("bqc,bchw->bqhw", *problem[1:3])


def structured_problem(size: Size = (71, 90), seed: int = 0) -> Problem:
    """Confident queries with round masks, as a trained model gives them, and some that are idle."""
    queries, classes, low = 20, 9, (18, 24)
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(queries, 2, generator=generator) * torch.tensor(low)
    radii = 3 + 5 * torch.rand(queries, generator=generator)
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in low), indexing="ij")
    distance = (y - centers[:, 0, None, None]).hypot(x - centers[:, 1, None, None])
    logits = 3 * (radii[:, None, None] - distance)
    logits[0] = 2.0  # something is everywhere
    class_logits = torch.randn(queries, classes + 1, generator=generator)
    labels = torch.randint(classes, (queries,), generator=generator)
    labels[queries // 2 :] = classes
    class_logits[torch.arange(queries), labels] += 8
    # The factors: one channel a query.
    embed = torch.eye(queries)
    return Problem(class_logits[None], embed[None], logits[None], (72, 96), (71, 90), size)


GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"size": (142, 180)},
    {"size": (100, 131), "image_size": (76, 92)},
    {"size": (13, 11)},
    {"low": (76, 92)},
    {"low": (90, 101)},
    {"low": (1, 1)},
    {"low": (3, 200), "size": (5, 700), "input_size": (9, 800), "image_size": (9, 800)},
    {"low": (3, 200), "size": (1, 23), "input_size": (9, 260), "image_size": (1, 260)},
    {"size": (1, 1), "input_size": (1, 1), "image_size": (1, 1)},
    {"queries": 1, "classes": 1},
    {"queries": 100, "classes": 150, "channels": 64},
    {"classes": 847},
]


@pytest.mark.parametrize("resize_logits", [False, True])
@pytest.mark.parametrize("sizes", GEOMETRIES, ids=str)
def test_label_maps_equal_the_official_ones(sizes: dict[str, Any], resize_logits: bool) -> None:
    problem = random_problem(**sizes)
    assert_official(problem, resize_logits)


@pytest.mark.parametrize("size", [(71, 90), (142, 181), (40, 33)])
@pytest.mark.parametrize("seed", range(4))
def test_label_maps_of_structured_masks(size: Size, seed: int) -> None:
    for resize_logits in (False, True):
        assert_official(structured_problem(size, seed), resize_logits)


def assert_official(problem: Problem, resize_logits: bool) -> None:
    """Labels but for near ties; scores no further from float64 than the official ones."""
    options = {**problem.options, "resize_logits": resize_logits, "return_scores": True}
    labels, scores = semantic_segmentation(*problem[:3], problem.size, **options)
    with use_backend("reference"):
        official, official_scores = semantic_segmentation(*problem[:3], problem.size, **options)
        truth = semantic_segmentation(*problem.to(torch.float64)[:3], problem.size, **options)[1]
    assert torch.equal(labels, scores.argmax(1))
    alone = semantic_segmentation(*problem[:3], problem.size, **{**options, "return_scores": False})
    assert torch.equal(alone, labels)
    best = official_scores.topk(min(2, official_scores.shape[1]), 1).values
    near = (best[:, 0] - best[:, -1] < NEAR) & (best.shape[1] == 2)
    differ = labels != official
    assert not (differ & ~near).any()
    assert differ.float().mean() < 1e-3 or differ.sum() <= 1
    error, official_error = ((x - truth).norm() for x in (scores, official_scores))
    assert error <= 1.5 * official_error + 1e-7 * truth.norm()


@pytest.mark.parametrize("paint", ["maskformer", "mask2former"])
@pytest.mark.parametrize("size", [(71, 90), (142, 181), (40, 33)])
@pytest.mark.parametrize("seed", range(6))
def test_panoptic_maps_are_the_official_ones(size: Size, seed: int, paint: Any) -> None:
    problem = structured_problem(size, seed)
    options: dict[str, Any] = {
        **problem.options,
        "thing_classes": range(0, 9, 2),
        "overlap_threshold": 0.5,
        "paint": paint,
    }
    ((result, segments),) = panoptic_segmentation(*problem[:3], size, **options)
    with use_backend("reference"):
        ((official, official_segments),) = panoptic_segmentation(*problem[:3], size, **options)
    assert segments
    assert segments == official_segments
    assert torch.equal(result, official)


@pytest.mark.parametrize("confident_only", [False, True])
def test_owners_and_counts(confident_only: bool) -> None:
    problem = structured_problem()
    scores = torch.linspace(0.3, 0.9, 20)
    scores[::3] = -1
    owners, counts = torch.ops.mfkernels.panoptic_owners(
        scores,
        problem.mask_embed[0].double(),
        problem.pixel_features[0].double(),
        *problem.sides,
        *problem.size,
        confident_only,
    )
    logits = torch.nn.functional.interpolate(
        problem.pixel_features.double(), problem.input_size, mode="bilinear"
    )
    masks = logits[0, :, : problem.image_size[0], : problem.image_size[1]].sigmoid()
    best = (scores[:, None, None] * masks).argmax(0)
    confident = masks >= 0.5
    painted = best
    if confident_only:
        painted = torch.where(confident.gather(0, best[None])[0], best, -1)
    assert torch.equal(owners, painted.int())
    for query, row in enumerate(counts.tolist()):
        if scores[query] < 0:
            assert row == [0, 0, 0]
        else:
            sums = [(best == query).sum(), confident[query].sum(), (painted == query).sum()]
            assert row == [int(x) for x in sums]


@pytest.mark.parametrize("confidence", [4.0, 6.0, 9.0])
@pytest.mark.parametrize("views", [1, 3])
def test_queries_left_out_change_no_label(views: int, confidence: float) -> None:
    """With scores every query counts, without them most are left out where that is safe."""
    shown = []
    for seed in range(views):
        problem = random_problem(queries=60, size=(64, 300), seed=seed)
        idle = torch.arange(60) % 7 > 0
        problem.class_logits[:, idle, -1] += confidence
        problem.class_logits[:, ~idle, seed] += 5
        shown.append(
            SegmentationView(*problem[:3], *problem.options.values(), flipped=bool(seed % 2))
        )
    labels = average_semantic_segmentation(shown, problem.size)
    every, _ = average_semantic_segmentation(shown, problem.size, return_scores=True)
    assert isinstance(labels, Tensor)
    assert isinstance(every, Tensor)
    assert torch.equal(labels, every)
    assert len(labels.unique()) > 1


def test_many_idle_queries_can_outvote_a_live_one() -> None:
    """Ten of 0.04 and one of 0.3, which leads by less in the middle."""
    probability = torch.tensor([[0.3, 1e-9, 0.7], *[[1e-9, 0.04, 0.96]] * 10])
    logits = torch.full((1, 11, 1, 96), 9.0)
    logits[:, 1:, :, :32] = -9.0
    logits[:, 1:9, :, 64:] = -9.0
    labels = semantic_segmentation(probability.log()[None], logits, None, (1, 96))
    assert isinstance(labels, Tensor)
    assert labels[0, 0].tolist() == [0] * 32 + [1] * 32 + [0] * 32


def test_nothing_but_void() -> None:
    problem = structured_problem()
    problem.class_logits[..., -1] += 60
    assert_official(problem, resize_logits=False)
    ((result, segments),) = panoptic_segmentation(
        *problem[:3], problem.size, thing_classes=[0], **problem.options
    )
    assert segments == []
    assert (result == 0).all()


sides = st.integers(1, 40)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    padded = (draw(sides), draw(st.integers(1, 300)))
    image = (draw(st.integers(1, padded[0])), draw(st.integers(1, padded[1])))
    return random_problem(
        draw(st.integers(1, 14)),
        draw(st.integers(1, 26)),
        (draw(sides), draw(st.integers(1, 90))),
        padded,
        image,
        draw(st.sampled_from([image, (draw(sides), draw(st.integers(1, 400)))])),
        channels=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 2**20)),
    )


@given(st.lists(problems(), min_size=1, max_size=3), st.booleans(), st.booleans())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_views(drawn: list[Problem], resize_logits: bool, dense: bool) -> None:
    classes = min(problem.class_logits.shape[2] for problem in drawn)
    size = drawn[0].size
    views = [
        SegmentationView(
            problem.class_logits[..., :classes] if classes > 1 else problem.class_logits[..., :2],
            *(dense_logits(problem), None) if dense else problem[1:3],
            problem.input_size,
            [problem.image_size],
            flipped=bool(index % 2),
        )
        for index, problem in enumerate(x.to(torch.float64) for x in drawn)
    ]
    options: dict[str, Any] = {"resize_logits": resize_logits, "return_scores": True}
    labels, scores = average_semantic_segmentation(views, size, **options)
    with use_backend("reference"):
        expected = average_semantic_segmentation(views, size, **options)[1]
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(labels, scores.argmax(1))


def outputs(problem: Problem, **options: Any) -> list[Tensor]:
    """Everything that the kernels return."""
    labels, scores = semantic_segmentation(
        *problem[:3], problem.size, return_scores=True, **problem.options, **options
    )
    owners, counts = torch.ops.mfkernels.panoptic_owners(
        problem.class_logits[0].float().softmax(1).amax(1),
        problem.mask_embed[0],
        problem.pixel_features[0],
        *problem.sides,
        *problem.size,
        True,
    )
    return [labels, scores, owners, counts]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    problem = random_problem(size=(213, 180), queries=30)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = outputs(problem)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert_same(outputs(problem), expected)
    finally:
        torch.set_num_threads(threads)


def test_strides() -> None:
    problem = random_problem()
    strided = Problem(
        problem.class_logits.mT.contiguous().mT,
        torch.stack((problem.mask_embed,) * 2, -1)[..., 1],
        problem.pixel_features.to(memory_format=torch.channels_last),
        *problem[3:],
    )
    assert_same(outputs(strided), outputs(problem))
    dense = dense_logits(problem)
    view = SegmentationView(problem.class_logits, dense, None, *problem.options.values())
    expected = average_semantic_segmentation([view], problem.size, return_scores=True)
    for strided_logits in (dense.mT.contiguous().mT, dense.to(memory_format=torch.channels_last)):
        found = average_semantic_segmentation(
            [view._replace(mask_embed=strided_logits)], problem.size, return_scores=True
        )
        assert_same(list(found), list(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    half = random_problem().to(dtype)
    assert_same(outputs(half), outputs(half.to(torch.float32)))


def test_mixed_precision_is_computed_in_the_widest() -> None:
    problem = random_problem()
    wide = problem.to(torch.float64)
    expected = semantic_segmentation(*wide[:3], (30, 30), return_scores=True)
    for index in range(3):
        mixed = [*problem[:3]]
        mixed[index] = wide[index]
        found = semantic_segmentation(mixed[0], mixed[1], mixed[2], (30, 30), return_scores=True)
        assert_same(list(found), list(expected))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_values_that_are_not_finite(value: float, where: int) -> None:
    """A result of its shape, the same again, and nothing outside the ranges."""
    problem = random_problem(size=(100, 131))
    problem[where].flatten()[3] = value
    for resize_logits in (False, True):
        labels, scores, owners, counts = outputs(problem, resize_logits=resize_logits)
        assert 0 <= labels.min() <= labels.max() < 7
        assert -1 <= owners.min() <= owners.max() < 13
        assert 0 <= counts.min() <= counts.max() <= owners.numel()
        again = outputs(problem, resize_logits=resize_logits)
        assert torch.equal(again[0], labels)
        assert torch.equal(again[1].nan_to_num(), scores.nan_to_num())
        assert_same(again[2:], [owners, counts])
    panoptic_segmentation(
        *problem[:3], problem.size, thing_classes=[1], object_mask_threshold=0.2, **problem.options
    )


def test_infinite_logits_and_nan() -> None:
    """Infinity is a mask that is certain; NaN gives class 0, as `argmax` does, and owns nothing."""
    logits = torch.tensor([[[[math.inf, -math.inf, math.inf, 100.0, -100.0, math.nan]]]])
    logits = torch.cat((logits, torch.full_like(logits, -1.0)), 1)
    class_logits = torch.tensor([[[0.0, 6.0, 1.0], [8.0, 0.0, 1.0]]])
    size = (1, 6)
    labels = semantic_segmentation(class_logits, logits, None, size)
    with use_backend("reference"):
        expected = semantic_segmentation(class_logits, logits, None, size)
    assert torch.equal(labels, expected)
    ((result, _),) = panoptic_segmentation(
        class_logits, logits, None, size, thing_classes=[0, 1], overlap_threshold=0.0
    )
    # The second mask is nowhere at least 0.5.
    assert result.tolist() == [[1, 0, 1, 1, 0, 0]]


def test_vanishing_masks_are_equal() -> None:
    """Below the normal numbers every sigmoid is 0, and the first of equals wins, as officially."""
    logits = torch.tensor([-200.0, -150.0, -120.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    class_logits = torch.tensor([[[5.0, 0, 0], [0, 6.0, 0], [0, 7.0, 0]]])
    assert (semantic_segmentation(class_logits, logits, None, (2, 2)) == 0).all()
    owners, _ = torch.ops.mfkernels.panoptic_owners(
        torch.tensor([0.5, 0.9, 0.95]), logits[0], None, 2, 2, 2, 2, 2, 2, False
    )
    assert (owners == 0).all()


@pytest.mark.parametrize("dense", [False, True])
def test_opcheck(dense: bool) -> None:
    problem = random_problem(queries=3, low=(4, 5), size=(9, 8))
    embed, features = problem.mask_embed[0], problem.pixel_features[0]
    if dense:
        embed = torch.einsum("qc,chw->qhw", embed, features)
    pixels = [] if dense else [features] * 2
    probability = problem.class_logits[0].softmax(1)[:, :-1]
    for scores in (False, True):
        torch.library.opcheck(
            torch.ops.mfkernels.semantic_segmentation.default,
            (
                [probability] * 2,
                [embed] * 2,
                pixels,
                *([side] * 2 for side in problem.sides),
                [False, True],
                9,
                8,
                True,
                scores,
            ),
        )
        torch.library.opcheck(
            torch.ops.mfkernels.panoptic_owners.default,
            (torch.rand(3), embed, None if dense else features, *problem.sides, 9, 8, scores),
        )


def test_compiles_into_one_graph() -> None:
    problem = random_problem()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(class_logits: Tensor, embed: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        views = [
            SegmentationView(class_logits, embed, features, (76, 92), [(71, 90)]),
            SegmentationView(class_logits, embed, features.flip(-1), (80, 92), flipped=True),
        ]
        labels = semantic_segmentation(class_logits, embed, features, (40, 40))
        averaged = average_semantic_segmentation(views, (71, 90))
        assert isinstance(labels, Tensor)
        assert isinstance(averaged, Tensor)
        return labels, averaged

    assert_same(list(compiled(*problem[:3])), list(compiled.__wrapped__(*problem[:3])))


def test_fake_tensors_have_the_shapes() -> None:
    real = random_problem()
    expected = outputs(real)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in real[:3]]
        for fake, tensor in zip(outputs(Problem(*fakes, *real[3:])), expected, strict=True):
            assert fake.shape == tensor.shape
            assert fake.dtype == tensor.dtype


@pytest.mark.skipif(
    sys.platform != "linux" or "LD_PRELOAD" in os.environ,
    reason="needs /proc and a heap without instruments",
)
def test_memory() -> None:
    """Far less than masks (100 MB) or scores (200 MB) at the size of the result."""
    problem = random_problem(100, 200, (64, 128), (256, 512), (256, 512), (512, 1024), 64)

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))

    semantic_segmentation(*problem[:3], problem.size, **problem.options)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    semantic_segmentation(*problem[:3], problem.size, **problem.options)
    assert status("VmHWM") - before < 30e6


SEMANTIC: dict[str, Any] = {
    "probability": [torch.rand(3, 2)],
    "mask_embed": [torch.rand(3, 4)],
    "pixel_features": [torch.rand(4, 5, 6)],
    "padded_heights": [20],
    "padded_widths": [24],
    "image_heights": [20],
    "image_widths": [24],
    "flipped": [False],
    "height": 7,
    "width": 8,
    "resize_logits": False,
    "return_scores": False,
}


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("flipped must be of the same views", {"flipped": []}),
        ("padded_widths must be of the same views", {"padded_widths": [24, 24]}),
        ("of the same views, at least one", {"probability": []}),
        ("of the same views", {"mask_embed": []}),
        ("of the same views", {"pixel_features": [torch.rand(4, 5, 6)] * 2}),
        ("height of the image must be positive", {"image_heights": [0]}),
        ("image must fit", {"image_heights": [21]}),
        ("height and width must be positive", {"width": 0}),
        (r"probability must be \[3, K\]", {"probability": [torch.rand(2, 2)]}),
        (r"pixel_features must be \[4, h, w\]", {"pixel_features": [torch.rand(5, 5, 6)]}),
        (r"mask_embed must be \[Q, C\]", {"mask_embed": [torch.rand(3)]}),
        (r"mask_embed must be \[Q, h, w\]", {"pixel_features": []}),
        ("must be float16", {"mask_embed": [torch.ones(3, 4, dtype=torch.int64)]}),
        ("masks must have queries and pixels", {"pixel_features": [torch.rand(4, 0, 6)]}),
    ],
)
def test_operators_refuse_what_does_not_fit(match: str, change: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=match):
        torch.ops.mfkernels.semantic_segmentation(**{**SEMANTIC, **change})


def test_the_owners_refuse_what_does_not_fit() -> None:
    embed, features = torch.rand(3, 4), torch.rand(4, 5, 6)
    sides = [20, 24, 20, 24]
    with pytest.raises(RuntimeError, match=r"scores must be \[3\]"):
        torch.ops.mfkernels.panoptic_owners(torch.rand(2), embed, features, *sides, 7, 8, False)
    with pytest.raises(RuntimeError, match="image must fit into the padded input"):
        torch.ops.mfkernels.panoptic_owners(
            torch.rand(3), embed, features, 20, 24, 20, 25, 7, 8, False
        )
