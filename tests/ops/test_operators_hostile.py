"""Empty sizes, giant views and arguments that do not fit: a result or an error, never a crash."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.repository import TESTS
from helpers.strategies import Case
from numpy.lib.stride_tricks import as_strided
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import mfkernels as mfk
from mfkernels import SegmentTargets, backend, use_backend

needs_native = pytest.mark.skipif(
    not backend.part("cpu").usable, reason=str(backend.part("cpu").problem)
)


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits its memory")
def test_no_arguments_crash_an_operator(tmp_path: Path) -> None:
    program = TESTS / "helpers" / "hostile" / "operators.py"
    last = tmp_path / "last.txt"
    result = subprocess.run(
        [sys.executable, str(program), "480", "7", str(last)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:] + last.read_text()
    outcomes, names = result.stdout.strip().rsplit("\n", 1)[-1].split("} [")
    counts = ast.literal_eval(outcomes + "}")
    assert counts["calls"] > 400
    assert counts["results"] > 100
    assert "mask_loss_backward" in names


def outcome(name: str, call: Callable[[], Any]) -> Any:
    with use_backend(name):  # type: ignore[arg-type]
        try:
            return call()
        except (ValueError, TypeError) as error:
            return str(error)


def predictions(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    return case.predictions(grad=True)


def targets(case: Case) -> SegmentTargets:
    counts = case.counts
    number = sum(counts)
    labels = torch.zeros(number, dtype=torch.int64)
    if case.overlap:
        masks = torch.ones(number, *case.size, dtype=torch.bool)
        return SegmentTargets(labels, counts, masks=masks)
    maps = torch.full((len(counts), *case.size), -1, dtype=torch.int16)
    return SegmentTargets(labels, counts, label_map=maps)


EMPTY = {
    "channels": Case(channels=0),
    "layers": Case(layers=0),
    "images": Case(counts=()),
    "queries": Case(queries=0),
    "classes": Case(classes=0),
    "segments": Case(counts=(0, 0)),
    "mask height": Case(low=(0, 5)),
    "mask width": Case(low=(6, 0)),
    "target height": Case(size=(0, 20)),
    "target width": Case(size=(24, 0)),
}
REFUSED = {"queries", "classes", "mask height", "mask width", "target height", "target width"}


def losses(case: Case) -> list[Tensor]:
    _, embed, features = predictions(case)
    assignment = torch.zeros(case.layers, len(case.counts), max(case.counts, default=0)).long()
    pair = mfk.mask_loss(embed, features, targets(case), assignment)
    (pair[0].sum() + pair[1].sum()).backward()
    return [*pair, *(x.grad for x in (embed, features) if x.grad is not None)]


def costs(case: Case) -> list[Tensor]:
    return [mfk.matching_cost(*predictions(case), targets(case))]


def logits(case: Case) -> list[Tensor]:
    return [mfk.mask_logits(*predictions(case)[1:])]


def labels(case: Case) -> list[Tensor]:
    class_logits, embed, features = predictions(case)
    chosen = mfk.semantic_segmentation(class_logits[0], embed[0], features, size=(7, 9))
    assert isinstance(chosen, Tensor)
    return [chosen]


def panoptic(case: Case) -> list[Tensor]:
    class_logits, embed, features = predictions(case)
    maps = mfk.panoptic_segmentation(
        100 * class_logits[0], embed[0], features, size=(7, 9), thing_classes=[0]
    )
    return [panoptic_map for panoptic_map, _ in maps]


@needs_native
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("operation", [losses, costs, logits, labels, panoptic])
def test_empty_sizes_mean_the_same_to_both_backends(
    operation: Callable[[Case], list[Tensor]], empty: str, overlap: bool
) -> None:
    case = EMPTY[empty]
    case = Case(**{**case.__dict__, "overlap": overlap})
    if operation in (labels, panoptic) and case.layers == 0:
        pytest.skip("inference takes no layers")
    native, plain = (outcome(name, lambda: operation(case)) for name in ("native", "reference"))
    if isinstance(plain, str):
        assert native == plain
        return
    assert not isinstance(native, str), native
    torch.testing.assert_close(native, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("empty", sorted(REFUSED))
def test_what_has_no_mean_is_refused(empty: str) -> None:
    with pytest.raises(ValueError, match=r"at least one (query and one )?pixel|K\+1"):
        (costs if empty == "classes" else losses)(EMPTY[empty])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
def test_empty_costs(shape: tuple[int, ...]) -> None:
    for name in ("native", "reference"):
        matches = outcome(name, lambda: mfk.batch_linear_assignment(torch.zeros(shape)))
        assert torch.equal(matches, torch.full(shape[:2], -1))
        rows, columns = outcome(name, lambda: mfk.linear_sum_assignment(np.zeros(shape[1:])))
        assert len(rows) == len(columns) == min(shape[1:])


@pytest.mark.parametrize("name", ["native", "reference"])
def test_matrices_that_only_repeat_an_entry(name: str) -> None:
    with use_backend(name):  # type: ignore[arg-type]
        for shape in ((1, 2**32 + 5), (2**32 + 5, 1)):
            with pytest.raises(ValueError, match="at most 1073741823 rows and columns"):
                mfk.linear_sum_assignment(as_strided(np.zeros(1), shape, (0, 0)))
        with pytest.raises(ValueError, match="repeats its memory"):
            mfk.linear_sum_assignment(as_strided(np.zeros(1), (1, 2**30 - 1), (0, 0)))
        with pytest.raises(ValueError, match="repeats its memory"):
            mfk.batch_linear_assignment(torch.zeros(()).expand(2**20, 30, 30))


GIANT = torch.zeros(()).expand(1, 1, 2**20, 2**20)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mfk.mask_logits(torch.zeros(1, 1, 2, 1), GIANT),
        lambda: mfk.mask_loss(
            torch.zeros(1, 1, 2, 1), GIANT, targets(Case(counts=(1,))), torch.zeros(1, 1, 1).long()
        ),
        lambda: mfk.sigmoid_focal_loss(GIANT, GIANT, reduction="sum"),
        lambda: mfk.focal_dice_loss(GIANT[0], GIANT[0]),
        lambda: mfk.sample_points(GIANT[0], torch.zeros(1, 1, 2)),
        lambda: mfk.semantic_segmentation(
            torch.zeros(1, 2, 3), torch.zeros(1, 2, 1), GIANT, size=(8, 8)
        ),
    ],
)
def test_giant_views_are_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="repeats its memory too often"):
        call()


@needs_native
def test_operators_check_what_python_checks_first() -> None:
    operators = torch.ops.mfkernels
    counts, matches = torch.tensor([1]), torch.zeros(1, 1, 1).long()
    mask = torch.ones(1, 5, 64, dtype=torch.bool)

    def loss(embed: Tensor, features: Tensor | None = None, **change: Any) -> Any:
        given = {"counts": counts, "assignment": matches, "num_segments": 1}
        given |= {"alpha": 0.25, "gamma": 2.0, **change}
        return operators.mask_loss(embed, features, None, mask, **given, keep_maps=False)

    dense = torch.zeros(1, 1, 2, 4, 4)
    assert loss(dense)[0].shape == (1, 1, 1)
    for match, call in {
        "masks must have pixels, got 0 x 4": lambda: loss(torch.zeros(1, 1, 2, 0, 4)),
        "gamma must be finite": lambda: loss(dense, gamma=float("inf")),
        "alpha must be finite": lambda: loss(dense, alpha=float("nan")),
        "query 2, expected -1 to 1": lambda: loss(dense, assignment=matches + 2),
        "query -2, expected -1 to 1": lambda: loss(dense, assignment=matches - 2),
        r"counts\[0\] is 2, expected 0 to 1": lambda: loss(dense, counts=counts + 1),
        "counts add up to 1, more than num_segments, 0": lambda: loss(dense, num_segments=0),
        r"counts must be of type Long, got Int \[1\]": lambda: loss(dense, counts=counts.int()),
        "height of the padded input must be at most 16777216": lambda: operators.panoptic_owners(
            torch.rand(2), torch.zeros(2, 4, 4), None, *(2**40, 8, 8, 8), 8, 8, False
        ),
        "masks of an image must be at most": lambda: operators.mask_logits(
            torch.zeros(1, 1, 2**40, 0), torch.zeros(1, 0, 4, 4)
        ),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            call()


@needs_native
def test_fake_tensors_are_checked_too() -> None:
    operators = torch.ops.mfkernels
    with FakeTensorMode(), torch.device("cuda"):
        embed, features = torch.empty(1, 1, 2, 4), torch.empty(1, 3, 8, 8)
        counts = torch.empty(1, dtype=torch.int64)
        matches = torch.empty(1, 1, 1, dtype=torch.int64)
        mask = torch.empty(1, 5, 64, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"pixel_features must be \[1, 4, h, w\], got \[1, 3"):
            operators.mask_loss(embed, features, None, mask, counts, matches, 5, 0.25, 2.0, True)
        with pytest.raises(ValueError, match=r"targets must be \[2, 5\], got \[2, 6\]"):
            operators.focal_dice(torch.empty(2, 5), torch.empty(2, 6), 0.25, 2.0)
        with pytest.raises(TypeError, match=r"counts must be torch\.int64, got torch\.int32"):
            operators.class_loss(torch.empty(1, 1, 2, 3), counts, counts.int(), matches, 0.1)


@needs_native
def test_what_is_refused_for_fake_tensors_too() -> None:
    operators = torch.ops.mfkernels
    images, points, values = torch.zeros(2, 4, 4), torch.zeros(1, 5, 2), torch.zeros(2, 5)
    maps, weight = torch.zeros(1, 16, 0, 4), torch.zeros(16)
    qkv, padding, bias = torch.zeros(1, 0, 4, 3, 1, 16), torch.zeros(3, 1, 16), torch.zeros(1, 4, 4)
    for match, call in {
        "x must have images": lambda: operators.group_norm(maps, weight, weight, 4, 1e-5, False),
        "qkv must have": lambda: operators.window_attention(qkv, padding, bias, 2, 2, 0, 0),
        "points must be": lambda: operators.sample_points(images, points.half()),
        "images of bool": lambda: operators.sample_points_backward(values, images.bool(), points),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            call()
        fakes = FakeTensorMode(allow_non_fake_inputs=True)
        with fakes, pytest.raises((ValueError, TypeError), match=match):
            call()


@needs_native
def test_sizes_may_depend_on_the_data() -> None:
    weight, padding, bias = torch.zeros(16), torch.zeros(3, 1, 16), torch.zeros(1, 4, 4)

    class Norm(torch.nn.Module):
        def forward(self, count: Tensor) -> Tensor:
            images: Any = count.item()
            maps = torch.zeros(images, 16, 4, 4)
            return torch.ops.mfkernels.group_norm(maps, weight, weight, 4, 1e-5, False)[0]

    class Attention(torch.nn.Module):
        def forward(self, count: Tensor) -> Tensor:
            images: Any = count.item()
            qkv = torch.zeros(images, 4, 4, 3, 1, 16)
            return torch.ops.mfkernels.window_attention(qkv, padding, bias, 2, 2, 0, 0)[0]

    for module in (Norm(), Attention()):
        exported = torch.export.export(module, (torch.tensor(2),), strict=False)
        assert exported.module()(torch.tensor(3)).shape[0] == 3
