"""Second and forward derivatives, `torch.func` and `torch.compile`, of every operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from helpers.strategies import Case
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, jvp, linearize, vmap

import mfkernels as mfk
from mfkernels import MaskFormerCriterion, SegmentTargets, backend, use_backend
from mfkernels.ops.class_loss.operator import plain_gradient
from mfkernels.ops.sample_points.reference import gathered_points

CASE = Case(counts=(2, 0, 1), queries=3, channels=2, low=(3, 4), size=(6, 5))
CLASS_LOGITS, EMBED, FEATURES = CASE.predictions(torch.float64)
TARGETS = CASE.targets()
ASSIGNMENT = torch.tensor([[[0, 2], [-1, -1], [1, -1]], [[1, -1], [-1, -1], [2, -1]]])
POINTS = torch.rand(2, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
MASKS = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(4)) < 0.5
IMAGES = FEATURES[0]
MAPS, WEIGHT = (torch.randn(shape).double() for shape in ((1, 16, 5, 3), (16, 16, 3, 3)))
LAST = MAPS.contiguous(memory_format=torch.channels_last)
CHANNELS = torch.randn(2, 16).double()
"""The weight and bias of a norm."""
QKV, PADDING, BIAS = (
    torch.randn(shape).double() for shape in ((1, 3, 4, 3, 2, 16), (3, 2, 16), (2, 6, 6))
)
WINDOWS = ((2, 3), (1, 1))
"""Their size, and the shift."""
Function = Callable[[Tensor], Tensor]


def criterion_of(embed: Tensor, class_logits: Tensor = CLASS_LOGITS) -> Tensor:
    criterion = MaskFormerCriterion(CASE.classes)
    outputs = {"class_logits": class_logits, "mask_embed": embed, "pixel_features": FEATURES}
    return criterion.total(criterion(outputs, TARGETS))


FUNCTIONS: dict[str, tuple[Function, Tensor]] = {
    "sigmoid_focal_loss": (
        lambda x: mfk.sigmoid_focal_loss(x, POINTS).mul(POINTS).sum(),
        3 * POINTS.flip(1) - 1,
    ),
    "mean": (lambda x: mfk.sigmoid_focal_loss(x, POINTS, reduction="mean"), 3 * POINTS - 1),
    "focal_dice_loss": (lambda x: sum(mfk.focal_dice_loss(x, POINTS), x.new_zeros(())), 2 * POINTS),
    "point_loss": (lambda x: sum(mfk.point_loss(x, MASKS, POINTS), x.new_zeros(())), IMAGES),
    "sample_points": (lambda x: mfk.sample_points(x, POINTS).square().sum(), IMAGES),
    "mask_logits": (lambda x: mfk.mask_logits(x, FEATURES).square().sum(), EMBED),
    "mask_logits of features": (lambda x: mfk.mask_logits(EMBED, x).square().sum(), FEATURES),
    "conv3x3": (lambda x: mfk.conv3x3(x, WEIGHT).square().sum(), MAPS),
    "conv3x3 of weights": (lambda x: mfk.conv3x3(MAPS, x).square().sum(), WEIGHT),
    "group_norm": (lambda x: mfk.group_norm(x, 4, *CHANNELS).pow(3).sum(), LAST),
    "group_norm of weights": (
        lambda x: mfk.group_norm(LAST, 4, x, CHANNELS[1], relu=True).square().sum(),
        CHANNELS[0],
    ),
    "window_attention": (
        lambda x: mfk.window_attention(x, BIAS, *WINDOWS, PADDING).square().sum(),
        QKV,
    ),
    "window_attention of the bias": (
        lambda x: mfk.window_attention(QKV, x, *WINDOWS, PADDING).square().sum(),
        BIAS,
    ),
    "mask_loss": (
        lambda x: torch.stack(mfk.mask_loss(x, FEATURES, TARGETS, ASSIGNMENT)).sum(),
        EMBED,
    ),
    "criterion": (criterion_of, EMBED),
    "criterion of classes": (lambda x: criterion_of(EMBED, x), CLASS_LOGITS),
}


@pytest.fixture(params=["reference", "auto"])
def asked_for(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_backend(request.param):
        yield request.param


def gradient_of(function: Function, at: Tensor) -> Tensor:
    x = at.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.usefixtures("asked_for")
def test_forward_and_functional_derivatives(name: str) -> None:
    function, at = FUNCTIONS[name]
    truth, along = gradient_of(function, at), torch.randn_like(at)
    torch.testing.assert_close(grad(function)(at), truth)
    torch.testing.assert_close(jvp(function, (at,), (along,))[1], (truth * along).sum())
    torch.testing.assert_close(linearize(function, at)[1](along), (truth * along).sum())
    several = torch.stack((at, 2 * at))
    torch.testing.assert_close(vmap(function)(several), torch.stack([*map(function, several)]))
    dual = torch.autograd.forward_ad
    with dual.dual_level():
        tangent = dual.unpack_dual(function(dual.make_dual(at, along))).tangent
    torch.testing.assert_close(tangent, (truth * along).sum())


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.usefixtures("asked_for")
def test_batches_of_gradients(name: str) -> None:
    function, at = FUNCTIONS[name]
    x = at.clone().requires_grad_()
    slopes = torch.tensor([1.0, 2.0], dtype=at.dtype)
    (found,) = torch.autograd.grad(function(x), x, slopes, is_grads_batched=True)
    truth = gradient_of(function, at)
    torch.testing.assert_close(found, torch.stack((truth, 2 * truth)))


@pytest.mark.usefixtures("asked_for")
def test_costs_have_no_forward_derivative_and_vmap() -> None:
    def cost(embed: Tensor) -> Tensor:
        return mfk.matching_cost(CLASS_LOGITS, embed, FEATURES, TARGETS)

    assert not jvp(cost, (EMBED,), (torch.ones_like(EMBED),))[1].any()
    several = torch.stack((EMBED, -EMBED))
    costs = vmap(cost)(several)
    torch.testing.assert_close(costs, torch.stack([cost(EMBED), cost(-EMBED)]))
    solved = vmap(mfk.batch_linear_assignment)(costs)
    assert torch.equal(solved, mfk.batch_linear_assignment(costs))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_native_is_refused_by_name_inside_of_transformations(name: str) -> None:
    function, at = FUNCTIONS[name]
    with use_backend("native"), pytest.raises(backend.BackendError, match=r"torch\.func"):
        jvp(function, (at,), (at,))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.usefixtures("asked_for")
def test_second_derivatives(name: str) -> None:
    """Whoever serves the first ones; on a GPU they have a kernel of their own, too."""
    function, at = FUNCTIONS[name]
    x = at.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(function, (x,), fast_mode=True)


@pytest.mark.parametrize("name", ["mask_loss", "conv3x3"])
def test_autocast_around_a_differentiable_gradient_lowers_no_precision(name: str) -> None:
    if name == "conv3x3":
        x = MAPS.float().requires_grad_()
        loss = mfk.conv3x3(x, WEIGHT.float()).square().sum()
    else:
        x = EMBED.float().requires_grad_()
        loss = torch.stack(mfk.mask_loss(x, FEATURES.float(), TARGETS, ASSIGNMENT)).sum()
    with torch.autocast("cpu"):
        (found,) = torch.autograd.grad(loss, x, create_graph=True)
    (expected,) = torch.autograd.grad(loss, x)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_second_derivative_of_the_class_loss_of_gpus() -> None:
    target = torch.tensor([[[1, 4, 4], [4, 0, 4], [4, 4, 4]]] * 2)
    weights = torch.tensor([1, 1, 1, 1, 0.1], dtype=torch.float64)

    def plain(logits: Tensor) -> Tensor:
        entropy = torch.nn.functional.cross_entropy(
            logits.flatten(0, 2), target.flatten(), weights, reduction="none"
        )
        return entropy.view(2, -1).sum(1)

    x, gradient = CLASS_LOGITS.clone().requires_grad_(), torch.tensor([1.0, 2.0]).double()
    (truth,) = torch.autograd.grad(plain(x), x, gradient, create_graph=True)
    ours = plain_gradient(gradient, x, target.int(), 0.1)
    torch.testing.assert_close(ours, truth)
    seconds = [
        torch.autograd.grad(g.square().sum(), x, retain_graph=True)[0] for g in (ours, truth)
    ]
    torch.testing.assert_close(*seconds)


@pytest.mark.parametrize("which", ["reference", "native"])
def test_compiled_criterion_with_changing_targets(which: str) -> None:
    criterion = MaskFormerCriterion(CASE.classes)
    fixed = {"class_logits": CLASS_LOGITS[:1, :1], "pixel_features": FEATURES[:1]}

    def step(embed: Tensor, targets: SegmentTargets) -> Tensor:
        return criterion.total(criterion({**fixed, "mask_embed": embed}, targets))

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager")
    with use_backend("auto" if which == "native" else "reference"):
        for count in (1, 2):
            masks, labels = [torch.rand(count, 9, 7) < 0.5], [torch.arange(count)]
            targets = SegmentTargets.from_masks(masks, labels)
            results = []
            for function in (step, compiled):
                x = EMBED[:1, :1].clone().requires_grad_()
                loss = function(x, targets)
                results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
            torch.testing.assert_close(*results)


def test_numbers_of_segments_share_a_compiled_graph() -> None:
    """One for the first, one for all others. (PyTorch compiles 0 and 1 apart, as any size.)"""
    if (reason := backend.why_not_native("mask_loss", "cpu")) is not None:
        pytest.skip(reason)
    criterion = MaskFormerCriterion(CASE.classes)

    def step(embed: Tensor, others: dict[str, Tensor], targets: SegmentTargets) -> Tensor:
        return criterion.total(criterion({**others, "mask_embed": embed}, targets))

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for counts in ((3, 0), (1, 5), (2, 2), (6, 4), (0, 3), (9, 1)):
        case = Case(counts=counts, queries=12)
        class_logits, embed, features = case.predictions(torch.float64)
        others = {"class_logits": class_logits, "pixel_features": features}
        results = []
        for function in (step, compiled):
            x = embed.clone().requires_grad_()
            loss = function(x, others, case.targets())
            results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
        torch.testing.assert_close(*results)
    assert counter.frame_count == 2


@pytest.mark.parametrize("which", ["reference", "native"])
def test_compiled_point_losses_with_changing_shapes(which: str) -> None:
    def step(images: Tensor, masks: Tensor, points: Tensor) -> Tensor:
        return torch.stack(mfk.point_loss(images, masks, points)).sum()

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    with use_backend(which):
        for count in (1, 2, 4):
            shapes = ((count, 3, 4), (count, 6, 5), (count, 7, 2))
            images, masks, points = (torch.rand(shape) for shape in shapes)
            results = []
            for function in (step, compiled):
                x = images.clone().requires_grad_()
                loss = function(x, masks < 0.5, points)
                results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
            torch.testing.assert_close(*results)


class _MaskLosses(torch.nn.Module):
    def forward(self, embed: Tensor) -> tuple[Tensor, Tensor]:
        return mfk.mask_loss(embed, FEATURES, TARGETS, ASSIGNMENT)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.usefixtures("asked_for")
def test_exported_losses(strict: bool) -> None:
    exported = torch.export.export(_MaskLosses(), (EMBED,), strict=strict).module()
    torch.testing.assert_close(exported(EMBED), _MaskLosses()(EMBED))


@pytest.mark.parametrize("which", ["reference", "native"])
def test_compiled_with_changing_numbers_and_sizes(which: str) -> None:
    """The compiler traces a number that has changed as an unknown one."""
    criterion = MaskFormerCriterion(CASE.classes)
    outputs = {"class_logits": CLASS_LOGITS, "mask_embed": EMBED, "pixel_features": FEATURES}
    shapes = CLASS_LOGITS[0], EMBED[0], FEATURES

    def step(number: float, picture: Tensor) -> list[Tensor]:
        cost = mfk.matching_cost(CLASS_LOGITS, EMBED, FEATURES, TARGETS, mask_weight=number)
        losses = criterion(outputs, TARGETS, num_masks=number)
        size = picture.shape[-2:]
        labels = [
            mfk.semantic_segmentation(*shapes, size),
            *mfk.semantic_segmentation(*shapes, [(5, 6), (6, 5), size]),
        ]
        return [cost, *losses.values(), *(x for x in labels if isinstance(x, Tensor))]

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    with use_backend(which):
        for number, size in ((3.0, (6, 8)), (4.5, (7, 9))):
            picture = torch.empty(size)
            torch.testing.assert_close(compiled(number, picture), step(number, picture))


def test_costs_are_not_counted_inside_of_transformations() -> None:
    criterion = MaskFormerCriterion(CASE.classes)
    outputs = {"class_logits": CLASS_LOGITS * torch.nan, "pixel_features": FEATURES}
    grad(lambda e: criterion.total(criterion({**outputs, "mask_embed": e}, TARGETS)))(EMBED)
    assert criterion.bad_costs == 0


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_an_input_that_was_computed_from_another(backend: str, create_graph: bool) -> None:
    """Its gradient goes on to the other one by autograd, once."""
    first, weight = FEATURES.requires_grad_(), torch.rand(3, 12, dtype=torch.float64)

    def loss() -> Tensor:
        embed = (weight @ first.flatten(2).mT).expand_as(EMBED)
        return torch.stack(mfk.mask_loss(embed, first, TARGETS, ASSIGNMENT)).sum()

    with use_backend("reference"):
        (expected,) = torch.autograd.grad(loss(), first)
    with use_backend(backend):  # type: ignore[arg-type]
        (found,) = torch.autograd.grad(loss(), first, create_graph=create_graph)
    FEATURES.requires_grad_(False)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-12)


def test_a_label_that_is_no_class_gives_its_plain_gradient() -> None:
    """On a GPU nobody has checked it, and an assertion there would end all work."""
    logits = torch.randn(1, 1, 2, 4, dtype=torch.bfloat16)
    target = torch.tensor([[[9, 3]]], dtype=torch.int32)
    gradient = plain_gradient(torch.ones(1), logits, target, 0.1)
    probability = logits.float().softmax(-1)
    assert torch.equal(gradient[0, 0, 0], probability[0, 0, 0].to(logits.dtype))
    expected = 0.1 * (probability[0, 0, 1] - torch.tensor([0.0, 0, 0, 1]))
    torch.testing.assert_close(gradient[0, 0, 1].float(), expected, rtol=1e-2, atol=1e-4)


def test_points_read_no_corner_outside() -> None:
    images = torch.zeros(1, 3, 3)
    images[0, 0, 0] = torch.nan
    points = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert gathered_points(images, points).isnan().tolist() == [[False, True]]
