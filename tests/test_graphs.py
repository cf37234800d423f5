"""Targets of a fixed capacity, the criterion as a graph, and kernels compiled ahead."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.strategies import Case
from torch import Tensor

from mfkernels import GraphedCriterion, MaskFormerCriterion, SegmentTargets, graphs, warmup
from mfkernels.backend import BackendError, requested

NAMES = ("class_logits", "mask_embed", "pixel_features")
CAPACITY = 5


def outputs_of(case: Case, device: str = "cpu") -> dict[str, Tensor]:
    given = (x.to(device).requires_grad_() for x in case.predictions())
    return dict(zip(NAMES, given, strict=True))


def step(criterion: Any, case: Case, device: str = "cpu") -> list[Tensor]:
    """The total, all losses and all gradients."""
    outputs, targets = outputs_of(case, device), case.targets().to(device)
    if isinstance(criterion, GraphedCriterion):
        total, losses = criterion(outputs, targets)
    else:
        losses = criterion(outputs, targets)
        total = criterion.total(losses)
    assert list(losses) == list(MaskFormerCriterion(case.classes)(outputs_of(case), case.targets()))
    gradients = torch.autograd.grad(total, list(outputs.values()))
    return [total.detach(), *(loss.detach() for loss in losses.values()), *gradients]


CASES = [Case(layers=3, counts=counts) for counts in ((3, 0, 2), (1, 5, 1), (0, 0, 0))]


@pytest.fixture
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same computation, where no graph can be captured."""
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda module, arguments: module)


@pytest.mark.usefixtures("without_a_gpu")
@pytest.mark.parametrize("total", [None, 7])
def test_losses_and_gradients_at_a_fixed_capacity(total: int | None) -> None:
    criterion = MaskFormerCriterion(CASES[0].classes)
    graphed = GraphedCriterion(
        criterion,
        outputs_of(CASES[0]),
        CASES[0].targets(),
        max_count=CAPACITY,
        max_total=total,
    )
    for case in CASES:
        expected, found = step(criterion, case), step(graphed, case)
        for some, other in zip(found, expected, strict=True):
            torch.testing.assert_close(some, other)


def test_a_graph_is_captured_on_its_device_and_owns_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    criterion, first, other = MaskFormerCriterion(CASES[0].classes), *CASES[:2]
    targets, current = first.targets(), [None]

    @contextlib.contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor.device)
        yield
        current.pop()

    def captured(module: Any, memory: tuple[Tensor, ...]) -> Any:
        assert current[-1] == targets.device
        assert requested() == "native"

        def replay(*given: Tensor) -> Any:
            with torch.no_grad():
                for kept, new in zip(memory, given, strict=True):
                    kept.copy_(new)
            return module(*memory)

        return replay

    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", captured)
    graphed = GraphedCriterion(criterion, outputs_of(first), targets, max_count=CAPACITY)
    expected, _ = graphed(outputs_of(first), targets)
    graphed(outputs_of(other), other.targets())
    torch.testing.assert_close(graphed(outputs_of(first), targets)[0], expected)
    assert torch.equal(targets.label_map, first.targets().label_map)
    assert targets.counts_tensor().tolist() == list(first.counts)


@pytest.mark.usefixtures("without_a_gpu")
def test_a_graph_takes_batches_of_one_form_only() -> None:
    case, masks = CASES[0], Case(counts=(1, 1, 1), overlap=True)
    outputs, targets = outputs_of(case), case.targets()
    graphed = GraphedCriterion(
        MaskFormerCriterion(case.classes), outputs, targets, max_count=3, max_total=5
    )
    single = Case(layers=3, counts=(2,))
    for given, of_batch, said in (
        (outputs_of(single), targets, r"class_logits must be \[3, 3, .*, got \[3, 1, "),
        (outputs, single.targets(), r"counts must be \[3\] .*, got \[1\]"),
        (outputs, masks.targets(), "segments must be .* in torch.int16, .* in torch.bool"),
        ({**outputs, "mask_embed": outputs["mask_embed"].double()}, targets, "in torch.float64"),
    ):
        with pytest.raises(ValueError, match=said):
            graphed(given, of_batch)


def test_no_graph_of_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[0]
    outputs = {name: tensor.detach().double() for name, tensor in outputs_of(case).items()}
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda step, tensors: step(*tensors))
    with pytest.raises(BackendError, match="do not compute in float64"):
        GraphedCriterion(
            MaskFormerCriterion(case.classes), outputs, case.targets(), max_count=CAPACITY
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("total", [None, 7])
def test_a_graph_that_is_replayed(total: int | None) -> None:
    criterion = MaskFormerCriterion(CASES[0].classes).to("cuda")
    targets = CASES[0].targets().to("cuda")
    graphed = GraphedCriterion(
        criterion,
        outputs_of(CASES[0], "cuda"),
        targets,
        max_count=CAPACITY,
        max_total=total,
    )
    for case in CASES:
        expected, found = step(criterion, case, "cuda"), step(graphed, case, "cuda")
        for some, other in zip(found, expected, strict=True):
            torch.testing.assert_close(some, other)


def test_tensors_of_a_capacity_have_shapes_of_their_own() -> None:
    shapes = set()
    for case in CASES:
        targets = case.targets()
        labels, counts, segments = targets.with_capacity(CAPACITY)
        assert labels[: targets.num_segments].tolist() == targets.labels.tolist()
        assert counts.tolist() == list(case.counts)
        shapes.add((labels.shape, counts.shape, segments.shape))
        again = SegmentTargets.of_capacity(labels, counts, segments, CAPACITY, overlap=False)
        assert (again.counts, again.size) == (targets.counts, targets.size)
        tensors = (x.to("meta") for x in (labels, counts, segments))
        elsewhere = SegmentTargets.of_capacity(*tensors, CAPACITY, overlap=False)
        assert (elsewhere.max_count, elsewhere.size) == (CAPACITY, targets.size)
        assert elsewhere.num_segments == len(labels)
    assert len(shapes) == 1
    for overlap in (False, True):
        case = Case(counts=(2, 1), overlap=overlap)
        tensors = (x.to("meta") for x in case.targets().with_capacity(3, 4))
        of_total = SegmentTargets.of_capacity(*tensors, 3, overlap=overlap)
        assert (of_total.num_segments, of_total.max_count) == (4, 3)
    masks = Case(counts=(2, 1), overlap=True).targets()
    assert len(masks.with_capacity(3)[2]) == 6
    assert [len(x) for x in masks.with_capacity(3, 4)] == [4, 2, 4]


def test_what_does_not_fit_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[0]
    criterion, outputs, targets = (
        MaskFormerCriterion(case.classes),
        outputs_of(case),
        case.targets(),
    )
    with pytest.raises(ValueError, match="needs targets on a GPU, got cpu"):
        GraphedCriterion(criterion, outputs, targets, max_count=4)
    with pytest.raises(ValueError, match=r"must have class_logits, .*, got \['class_logits'\]"):
        GraphedCriterion(criterion, {"class_logits": outputs["class_logits"]}, targets, max_count=4)
    with pytest.raises(ValueError, match="an image has 3 segments, more than 2"):
        targets.with_capacity(2)
    with pytest.raises(ValueError, match="images have 5 segments, more than 4"):
        targets.with_capacity(3, 4)


@pytest.mark.parametrize("overlap", [False, True])
def test_warmup_goes_over_all_numbers_of_segments(
    overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, seen = Case(layers=2, counts=(1, 2)), []
    any_targets = graphs._any_targets

    def noted(*arguments: Any) -> SegmentTargets:
        seen.append(any_targets(*arguments))
        return seen[-1]

    monkeypatch.setattr(graphs, "_any_targets", noted)
    criterion, outputs = MaskFormerCriterion(case.classes), outputs_of(case)
    with torch.no_grad():
        warmup(criterion, outputs, case.size, most_segments=3, overlap=overlap)
    assert [targets.counts for targets in seen] == [(1, 0), (2, 0), (3, 0)]
    assert list(graphs.counts_to_try(3, 2, 2))[2:] == [(2, 1, 0)]
    assert list(graphs.counts_to_try(3, 2, 5))[2:] == [(2, 2, 2)]
    assert list(graphs.counts_to_try(3, 2, 6))[2:] == []
    assert all((targets.masks is not None) == overlap for targets in seen)
    assert criterion.bad_costs == 0
    assert all(x.grad is None for x in outputs.values())


def test_warmup_leaves_warnings_and_counts_to_training() -> None:
    case = Case(layers=2, counts=(4, 2), queries=3)
    criterion, outputs = MaskFormerCriterion(case.classes), outputs_of(case)
    outputs["class_logits"].data[0, 0, 0] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warmup(criterion, outputs, case.size, most_segments=5)
    assert criterion.bad_costs == 0
    with pytest.warns(UserWarning, match="4 segments, more than the 3 queries"):
        criterion(outputs, case.targets())
    assert criterion.bad_costs == 1


def test_warmup_in_inference_mode() -> None:
    case = Case(layers=2, counts=(1, 2))
    criterion = MaskFormerCriterion(case.classes)
    with torch.inference_mode():
        outputs = outputs_of(case)
        warmup(criterion, outputs, case.size, most_segments=2)
    warmup(criterion, outputs, case.size, most_segments=2)


@pytest.mark.parametrize("most", [0, -1, 2.5])
def test_warmup_needs_segments(most: Any) -> None:
    case = Case()
    with pytest.raises((TypeError, ValueError), match="most_segments must be"):
        warmup(MaskFormerCriterion(case.classes), outputs_of(case), case.size, most_segments=most)


@pytest.mark.parametrize("size", [(24.5, 28), (0, 5), (24, 28, 1), 24, None, "24", (2**40, 5)])
def test_warmup_needs_a_size(size: Any) -> None:
    case = Case()
    with pytest.raises(ValueError, match=r"size must be two integers in 1\.\."):
        warmup(MaskFormerCriterion(case.classes), outputs_of(case), size)
