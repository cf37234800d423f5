"""Triton kernels of the criterion in the interpreter, against the oracles in float64."""

from __future__ import annotations

import pytest
import torch
from helpers.gpu.interpreter import assert_as_exact
from helpers.strategies import Case
from torch import Tensor

from mfkernels import SegmentTargets
from mfkernels.ops.class_loss import triton_launch as class_loss_kernels
from mfkernels.ops.class_loss.reference import class_loss as class_loss_oracle
from mfkernels.ops.mask_loss import triton_launch as mask_loss_kernels
from mfkernels.ops.mask_loss import triton_pixels_launch as pixel_kernels
from mfkernels.ops.mask_loss import triton_problem
from mfkernels.ops.mask_loss import triton_product_launch as mask_loss_products
from mfkernels.ops.mask_loss.reference import mask_loss as mask_loss_oracle
from mfkernels.ops.matching_cost.reference import matching_cost as matching_cost_oracle
from mfkernels.ops.matching_cost.triton_launch import matching_cost as matching_cost_kernel


def dense(embed: Tensor, features: Tensor) -> Tensor:
    return torch.einsum("lbqc,bchw->lbqhw", embed, features)


def double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


CASES = [
    Case(),
    Case(counts=(1,), queries=1, channels=1, low=(1, 1), size=(1, 1), layers=1),
    Case(counts=(0, 3, 1), queries=5, channels=20, low=(7, 11), size=(13, 29)),
    Case(counts=(2, 4), queries=2, low=(9, 5), size=(4, 3), overlap=True),
    Case(counts=(3,), queries=9, channels=40, low=(8, 8), size=(24, 40), overlap=True),
    Case(counts=(70, 0), queries=50, channels=3, low=(6, 7), size=(60, 70)),
]
"""Label maps and masks, T > Q, images without segments, up- and downsampling, several tiles."""


def matching_cost(
    inputs: tuple[Tensor, Tensor, Tensor | None], targets: SegmentTargets, *options: float
) -> Tensor:
    return matching_cost_kernel(
        *inputs,
        targets.label_map,
        targets.masks,
        targets.labels,
        targets.counts_tensor(),
        targets.max_count,
        *options,
    )


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("options", [(1.0, 20.0, 1.0, 0.25, 2.0), (2.0, 5.0, 3.0, -1.0, 0.5)])
@pytest.mark.parametrize("case", CASES)
def test_matching_cost(case: Case, options: tuple[float, ...], factored: bool) -> None:
    class_logits, embed, features = case.predictions()
    inputs = (class_logits, embed, features)
    if not factored:
        inputs = (class_logits, dense(embed, features), None)
    targets = case.targets()
    truth = matching_cost_oracle(
        class_logits.double(), inputs[1].double(), double(inputs[2]), targets, *options
    )
    plain = matching_cost_oracle(*inputs, targets, *options)
    cost = matching_cost(inputs, targets, *options)
    assert cost.shape == truth.shape
    # Slack: two roundings of the largest term.
    slack = 2 * 2**-24 * truth.abs().max()
    assert (cost - truth).abs().max() <= 1.5 * (plain - truth).abs().max() + slack


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matching_cost_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    class_logits, embed, features = (x.to(dtype) for x in CASES[2].predictions())
    targets, options = CASES[2].targets(), (1.0, 20.0, 1.0, 0.25, 2.0)
    cost = matching_cost((class_logits, embed, features), targets, *options)
    wide = (class_logits.float(), embed.float(), features.float())
    torch.testing.assert_close(cost, matching_cost(wide, targets, *options), rtol=0, atol=2e-5)
    mixed = matching_cost((class_logits, embed.float(), features), targets, *options)
    torch.testing.assert_close(cost, mixed, rtol=0, atol=2e-5)


def test_matching_cost_of_strided_inputs() -> None:
    case, options = CASES[2], (1.0, 20.0, 1.0, 0.25, 2.0)
    class_logits, embed, features = case.predictions()
    targets = case.targets()
    cost = matching_cost((class_logits, embed, features), targets, *options)
    strided = (
        class_logits.transpose(0, 1).contiguous().transpose(0, 1),
        embed.transpose(0, 3).contiguous().transpose(0, 3),
        features.to(memory_format=torch.channels_last),
    )
    assert torch.equal(cost, matching_cost(strided, targets, *options))
    logits = dense(embed, features)
    turned = logits.transpose(3, 4).contiguous().transpose(3, 4)
    expected = matching_cost((class_logits, logits, None), targets, *options)
    assert torch.equal(expected, matching_cost((class_logits, turned, None), targets, *options))


def test_matching_cost_of_many_channels_and_pixels() -> None:
    """More channels than a tile holds, more pixels than a program takes."""
    case = Case(layers=1, counts=(2,), queries=3, channels=70, low=(50, 43), size=(100, 86))
    class_logits, embed, features = case.predictions()
    targets, options = case.targets(), (1.0, 20.0, 1.0, 0.25, 2.0)
    doubles = (class_logits.double(), embed.double(), features.double())
    truth = matching_cost_oracle(*doubles, targets, *options)
    plain = matching_cost_oracle(class_logits, embed, features, targets, *options)
    cost = matching_cost((class_logits, embed, features), targets, *options)
    assert (cost - truth).abs().max() <= 1.5 * (plain - truth).abs().max() + 1e-5


def test_matching_cost_without_segments_and_of_impossible_labels() -> None:
    case = Case(counts=(0, 0))
    options = (1.0, 20.0, 1.0, 0.25, 2.0)
    assert matching_cost(case.predictions(), case.targets(), *options).shape == (2, 2, 7, 0)
    case = Case(counts=(3, 2))
    targets = case.targets()
    targets.labels[1] = case.classes
    cost = matching_cost(case.predictions(), targets, *options)
    assert cost[:, 0, :, 1].isnan().all()
    cost[:, 0, :, 1] = 0
    assert torch.isfinite(cost).all()


def test_matching_cost_refuses_float64() -> None:
    class_logits, embed, features = CASES[0].predictions(torch.float64)
    with pytest.raises(TypeError, match="takes float32, bfloat16 and float16, got"):
        matching_cost((class_logits, embed, features), CASES[0].targets(), 1, 1, 1, 0.25, 2)


def random_assignment(case: Case) -> Tensor:
    """`[L, B, T]`: distinct queries, now and then none, and nonsense beyond an image's segments."""
    shape = (case.layers, len(case.counts), max(case.counts))
    assignment = torch.full(shape, case.queries + 5)
    for layer in range(case.layers):
        for image, count in enumerate(case.counts):
            queries = torch.randperm(max(case.queries, count) + 1)[:count]
            assignment[layer, image, :count] = queries.where(queries < case.queries, -1)
    return assignment


def losses_and_gradients(
    embed: Tensor,
    features: Tensor | None,
    targets: SegmentTargets,
    assignment: Tensor,
    weights: Tensor,
    alpha: float,
    gamma: float,
) -> list[Tensor]:
    """Of the oracle, in the dtype of its inputs: weighted sums `[L]`, gradients."""
    inputs = [x.clone().requires_grad_() for x in (embed, features) if x is not None]
    pair = inputs if len(inputs) == 2 else (inputs[0], None)
    masks = mask_loss_oracle(*pair, targets, assignment, 1.0, alpha, gamma)
    sum((loss * weight).sum() for loss, weight in zip(masks, weights, strict=True)).backward()
    return [*(loss.detach() for loss in masks), *(x.grad for x in inputs)]


def mask_loss(
    embed: Tensor,
    features: Tensor | None,
    targets: SegmentTargets,
    assignment: Tensor,
    weights: Tensor,
    *options: float,
    keep_maps: bool = True,
) -> list[Tensor]:
    """The same of the kernels."""
    segments = (targets.label_map, targets.masks, targets.counts_tensor())
    inputs = (embed, features, *segments, assignment, targets.num_segments, *options)
    focal, dice, sums, maps = mask_loss_kernels.mask_loss(*inputs, keep_maps)
    grads = [weight.float()[:, None, None].expand(assignment.shape) for weight in weights]
    gradients = mask_loss_kernels.mask_loss_backward(
        *grads, sums, maps, *inputs, True, features is not None
    )
    assert features is not None or gradients[1].shape == (0,)
    found = gradients if features is not None else gradients[:1]
    return [focal.sum((1, 2)), dice.sum((1, 2)), *found]


MASK_CASES = [
    Case(layers=1, counts=(1,), queries=1, channels=1, low=(1, 1), size=(1, 1)),
    Case(counts=(0, 3), queries=2, channels=20, low=(3, 5), size=(7, 6), overlap=True),
    Case(counts=(2, 1), queries=4, low=(9, 5), size=(4, 3)),
    Case(layers=1, counts=(2, 3), queries=5, channels=40, low=(5, 7), size=(20, 21)),
    Case(layers=1, counts=(2, 0, 1), queries=3, channels=3, low=(17, 3), size=(68, 12)),
    Case(layers=1, counts=(2, 1), queries=4, channels=3, low=(1, 2), size=(4, 8), overlap=True),
]
"""The last two are four times as large as their masks."""


@pytest.mark.parametrize("keep_maps", [True, False])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("options", [(0.25, 2.0), (-1.0, 0.5)])
@pytest.mark.parametrize("case", MASK_CASES)
def test_mask_loss(
    case: Case, options: tuple[float, float], factored: bool, keep_maps: bool
) -> None:
    _, embed, features = case.predictions()
    embed, features = (embed, features) if factored else (dense(embed, features), None)
    targets, assignment = case.targets(), random_assignment(case)
    weights = torch.rand(2, case.layers, dtype=torch.float64)
    given = (targets, assignment.clamp(max=case.queries - 1), weights, *options)
    truth = losses_and_gradients(embed.double(), double(features), *given)
    plain = losses_and_gradients(embed, features, *given)
    given = (targets, assignment, weights, *options)
    ours = mask_loss(embed, features, *given, keep_maps=keep_maps)
    assert_as_exact(ours, plain, truth)


@pytest.mark.parametrize("size", [(10, 12), (20, 24)])
@pytest.mark.parametrize("keep_maps", [True, False])
def test_mask_loss_in_several_parts(
    size: tuple[int, int], keep_maps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several chunks of cells, strips of rows, splits of pixels and groups of images."""
    case = Case(layers=2, counts=(2, 1), queries=2, channels=3, low=(5, 6), size=size)
    _, embed, features = case.predictions()
    given = (case.targets(), random_assignment(case), torch.rand(2, 2), 0.25, 2.0)
    whole = mask_loss(embed, features, *given)
    monkeypatch.setattr(pixel_kernels, "CELLS_OF_A_PROGRAM", 32)
    monkeypatch.setattr(pixel_kernels, "MASK_ROWS_OF_A_PROGRAM", 2)
    monkeypatch.setattr(pixel_kernels, "CELLS_OF_MEMBERS", 16)
    monkeypatch.setattr(mask_loss_products, "PIXELS_OF_A_SPLIT", 32)
    monkeypatch.setattr(triton_problem, "WORKSPACE", 1)
    parts = mask_loss(embed, features, *given, keep_maps=keep_maps)
    for result, same in zip(parts, whole, strict=True):
        torch.testing.assert_close(result, same, rtol=1e-5, atol=1e-6)


def test_mask_loss_of_a_query_matched_twice() -> None:
    case = Case(layers=1, counts=(2,), queries=2, channels=3, low=(2, 3), size=(4, 6))
    _, embed, features = case.predictions()
    assignment = torch.tensor([[[1, 1]]])
    given = (case.targets(), assignment, torch.rand(2, 1, dtype=torch.float64), 0.25, 2.0)
    for factors in ((embed, features), (dense(embed, features), None)):
        truth = losses_and_gradients(factors[0].double(), double(factors[1]), *given)
        for result, exact in zip(mask_loss(*factors, *given), truth, strict=True):
            torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mask_loss_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    case = Case(layers=1, counts=(2,), queries=3, channels=5, low=(3, 4), size=(6, 8))
    embed, features = (x.to(dtype) for x in case.predictions()[1:])
    given = (case.targets(), random_assignment(case), torch.rand(2, 1), 0.25, 2.0)
    wide = mask_loss(embed.float(), features.float(), *given)
    for result, same in zip(mask_loss(embed, features, *given), wide, strict=True):
        torch.testing.assert_close(
            result.float(), same.to(result.dtype).float(), rtol=1e-2, atol=1e-6
        )
    strided = features.to(memory_format=torch.channels_last)
    found = mask_loss(embed, strided, *given)
    for result, same in zip(found, mask_loss(embed, features, *given), strict=True):
        assert torch.equal(result, same)
    assert found[-1].stride() == strided.stride()


def test_mask_loss_of_counts_and_assignments_of_any_stride() -> None:
    case = Case(layers=2, counts=(3, 2), queries=5, channels=4)
    _, embed, features = case.predictions()
    targets, assignment = case.targets(), random_assignment(case)
    given = (assignment, torch.rand(2, 2), 0.25, 2.0)
    expected = mask_loss(embed, features, targets, *given)
    object.__setattr__(targets, "_counts", torch.tensor([3, 7, 2, 7])[::2])
    found = mask_loss(embed, features, targets, assignment.mT.contiguous().mT, *given[1:])
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4)])
def test_mask_loss_without_layers_images_or_queries(shape: tuple[int, ...]) -> None:
    layers, images, _, channels = shape
    embed, features = torch.randn(shape), torch.randn(images, channels, 3, 5)
    label_map = torch.full((images, 6, 10), -1, dtype=torch.int16)
    labels = torch.zeros(0, dtype=torch.int64)
    targets = SegmentTargets(labels, (0,) * images, label_map)
    assignment = torch.zeros(layers, images, 0, dtype=torch.int64)
    found = mask_loss(embed, features, targets, assignment, torch.rand(2, layers), 0.25, 2.0)
    assert [x.shape for x in found[2:]] == [embed.shape, features.shape]
    assert not any(bool(x.any()) for x in found)


def test_mask_loss_without_segments() -> None:
    case = Case(layers=1, counts=(0, 0))
    _, embed, features = case.predictions()
    given = (case.targets(), torch.zeros(1, 2, 0).long(), torch.rand(2, 1), 0.25, 2.0)
    assert all((part == 0).all() for part in mask_loss(embed, features, *given))


@pytest.mark.parametrize(
    "case",
    [
        Case(counts=(0, 3), queries=5, classes=300),
        Case(layers=1, counts=(70, 2), queries=7),
        Case(counts=(0,), queries=1, classes=1),
    ],
)
def test_class_loss(case: Case) -> None:
    targets, assignment = case.targets(), random_assignment(case).clamp(max=case.queries)
    assignment = assignment.where(assignment < case.queries, -1)
    class_logits = case.predictions()[0]
    exact = class_logits.double().requires_grad_()
    truth, weight = class_loss_oracle(exact, targets, assignment, 0.1)
    gradients = torch.rand(case.layers, dtype=torch.float64)
    (truth * gradients).sum().backward()
    given = (targets.labels, targets.counts_tensor(), assignment, 0.1)
    loss, total, *saved = class_loss_kernels.class_loss(class_logits, *given)
    gradient = class_loss_kernels.class_loss_backward(gradients.float(), class_logits, *saved, 0.1)
    torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(total.double(), weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-5, atol=1e-7)


def test_class_loss_of_an_impossible_label_is_nan() -> None:
    case = Case(layers=1)
    targets = case.targets()
    targets.labels[1] = case.classes
    assignment = torch.full((1, 2, 3), -1)
    given = (targets.labels, targets.counts_tensor(), assignment, 0.1)
    loss, *_ = class_loss_kernels.class_loss(case.predictions()[0], *given)
    assert loss.isnan().all()
