"""Patched models of transformers against the same models unpatched."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

transformers = pytest.importorskip("transformers")

from helpers import integrations_models as models  # noqa: E402
from transformers.models.mask2former import modeling_mask2former as mask2former  # noqa: E402
from transformers.models.maskformer import modeling_maskformer as maskformer  # noqa: E402

from mfkernels.integrations import matching, point_sampling  # noqa: E402
from mfkernels.integrations.transformers import (  # noqa: E402
    binding,
    losses,
    patch,
    patching,
    post_processing,
    unpatch,
)

Gradients = dict[str, Tensor]


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    unpatch()


@contextmanager
def in_float64() -> Iterator[None]:
    """The random numbers of float32 and no way back to it, for the truth of an original model."""
    draw, narrow = torch.rand, Tensor.float
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(torch, "rand", lambda *a, **k: draw(*a, **k).to(torch.float64))
        patches.setattr(Tensor, "float", lambda self: self.double())
        yield
    assert Tensor.float is narrow


def widened(values: dict[str, Any]) -> dict[str, Any]:
    def wide(value: Any) -> Any:
        if isinstance(value, list):
            return [wide(each) for each in value]
        return value.double() if value.is_floating_point() else value

    return {name: wide(value) for name, value in values.items()}


def step(model: nn.Module, name: str, values: dict[str, Any]) -> tuple[Tensor, Gradients]:
    model.zero_grad()
    torch.manual_seed(5)
    # Without it transformers' MaskFormer fails with auxiliary losses.
    options = {"output_hidden_states": True} if name == "maskformer_deep" else {}
    loss = model(**values, **options).loss.sum()
    loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm())


@pytest.mark.parametrize("name", models.MODELS)
def test_loss_and_every_gradient_equal_the_original(name: str) -> None:
    model = models.build(name)
    values = models.inputs(name)
    with in_float64():
        truth, true_gradients = step(copy.deepcopy(model).double(), name, widened(values))
    theirs, their_gradients = step(copy.deepcopy(model), name, values)
    patch(model)
    ours, our_gradients = step(model, name, values)
    # The step of the rest of the model has the same error in both; the slack is a few roundings.
    assert error(ours, truth) <= error(theirs, truth) + 3e-7 * float(truth)
    assert our_gradients.keys() == their_gradients.keys() == true_gradients.keys()
    largest = max(float(gradient.norm()) for gradient in true_gradients.values())
    for key, gradient in true_gradients.items():
        allowed = 1.5 * error(their_gradients[key], gradient) + 1e-6 * float(gradient.norm())
        assert error(our_gradients[key], gradient) <= allowed + 1e-8 * largest, key


def criterion(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A criterion alone, with weights unlike those of the cost."""
    family = next(f for f in patching.FAMILIES if f.name == name)
    module = {"mask2former": mask2former, "maskformer": maskformer}[name]
    return family.make_criterion(module).to(dtype)


def predictions(layers: int = 2, images: int = 2, queries: int = 6) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        {
            "masks_queries_logits": 3 * torch.randn(images, queries, 8, 12, generator=generator),
            "class_queries_logits": torch.randn(images, queries, 5, generator=generator),
        }
        for _ in range(layers)
    ]


def run(
    module: nn.Module, layers: list[dict[str, Tensor]], targets: dict[str, list[Tensor]]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """All losses, and the gradients of all logits."""
    leaves = [{k: v.detach().requires_grad_() for k, v in layer.items()} for layer in layers]
    torch.manual_seed(5)
    labels = [label.clamp(max=3) for label in targets["class_labels"]]
    result = module(*leaves[-1].values(), targets["mask_labels"], labels, leaves[:-1])
    for loss in result.values():
        loss *= 2.0  # as the models do, in place
    flat = [leaf for layer in leaves for leaf in layer.values()]
    return result, list(torch.autograd.grad(sum(result.values()), flat))


def same(name: str, targets: dict[str, list[Tensor]], **options: Any) -> None:
    """Compare criteria, patched and not, on the same logits."""
    layers = predictions(images=len(targets["mask_labels"]), **options)
    module = criterion(name)
    theirs, their_gradients = run(module, layers, targets)
    patch(module)
    ours, our_gradients = run(module, layers, targets)
    assert list(ours) == list(theirs)
    for key, loss in theirs.items():
        torch.testing.assert_close(ours[key], loss, rtol=2e-6, atol=1e-6, msg=key)
    for mine, gradient in zip(our_gradients, their_gradients, strict=True):
        assert mine.dtype == gradient.dtype
        torch.testing.assert_close(mine, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["maskformer", "mask2former"])
class TestTargets:
    def test_an_image_without_segments(self, name: str) -> None:
        same(name, models.targets((0, 3)))

    def test_no_segments_at_all(self, name: str) -> None:
        same(name, models.targets((0, 0)))

    def test_no_segments_and_no_weight_of_no_object(self, name: str) -> None:
        layers, targets = predictions(), models.targets((0, 0))
        module = criterion(name)
        module.empty_weight[-1] = 0
        theirs, _ = run(module, layers, targets)
        patch(module)
        ours, _ = run(module, layers, targets)
        assert ours["loss_cross_entropy"].isnan()
        torch.testing.assert_close(ours, theirs, equal_nan=True)

    def test_more_segments_than_queries(self, name: str) -> None:
        same(name, models.targets((6, 2)), queries=4)

    def test_images_of_different_sizes(self, name: str) -> None:
        large, small = models.targets((3,)), models.targets((2,), (40, 56))
        same(name, {key: large[key] + small[key] for key in large})

    def test_values_other_than_0_and_1(
        self, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(losses, "_logged", set())
        targets = models.targets((3, 2))
        for mask in targets["mask_labels"]:
            mask[:, -8:] = 255
        with caplog.at_level(logging.WARNING):
            same(name, targets)
        said = [r for r in caplog.records if "other than 0 and 1" in r.message]
        assert len(said) == (name == "maskformer")

    def test_the_processes_talk_as_often_as_before(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = criterion(name)
        calls = []
        count = module.get_num_masks
        monkeypatch.setattr(
            module, "get_num_masks", lambda *a, **k: calls.append(1) or count(*a, **k)
        )
        run(module, predictions(layers=3), models.targets((3, 2)))
        patch(module)
        run(module, predictions(layers=3), models.targets((3, 2)))
        assert len(calls) == 2 * 3

    def test_each_feature_alone(self, name: str) -> None:
        layers, targets = predictions(), models.targets((3, 2))
        theirs, _ = run(criterion(name), layers, targets)
        for feature in ("criterion", "matcher"):
            module = criterion(name)
            patch(module, **{f: f == feature for f in ("criterion", "matcher")})
            patched = {"criterion": module, "matcher": module.matcher}
            for which, owner in patched.items():
                methods = (getattr(owner, name, None) for name in ("forward", "loss_masks"))
                assert any(map(binding.is_replacement, methods)) == (which == feature)
            ours, _ = run(module, layers, targets)
            for key, loss in theirs.items():
                torch.testing.assert_close(ours[key], loss, rtol=2e-6, atol=1e-6)

    def test_scipy_is_not_called(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        module = criterion(name)
        patch(module)
        forbidden: Callable[..., Any] = lambda *_: pytest.fail("SciPy was called")  # noqa: E731
        monkeypatch.setattr(maskformer, "linear_sum_assignment", forbidden)
        monkeypatch.setattr(mask2former, "linear_sum_assignment", forbidden)
        calls = []
        assign = matching.assign
        for module_of_it in (matching, losses):
            monkeypatch.setattr(module_of_it, "assign", lambda *a: calls.append(1) or assign(*a))
        run(module, predictions(layers=3), models.targets((3, 2)))
        # Mask2Former's random points are drawn in the order of the layers: one call each.
        assert len(calls) == (1 if name == "maskformer" else 3)

    def test_a_matcher_that_is_not_one_to_one(self, name: str) -> None:
        class Twice(nn.Module):
            def forward(self, _: Tensor, __: Tensor, masks: list[Tensor], ___: Any) -> Any:
                return [(torch.tensor([0, 2, 3]), torch.tensor([1, 1, 0]))] * len(masks)

        layers, targets = predictions(), models.targets((3, 3))
        module = criterion(name)
        module.matcher = Twice()
        theirs, their_gradients = run(module, layers, targets)
        patch(module)
        ours, our_gradients = run(module, layers, targets)
        for key, loss in theirs.items():
            torch.testing.assert_close(ours[key], loss, rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-4, atol=1e-7)

    def test_hooks_of_the_matcher_are_called(self, name: str) -> None:
        module = criterion(name)
        calls = []
        module.matcher.register_forward_hook(lambda *_: calls.append(1))
        patch(module)
        run(module, predictions(layers=3), models.targets((3, 2)))
        assert len(calls) == 3

    def test_indices_are_the_official_ones(self, name: str) -> None:
        module = criterion(name).matcher
        targets = models.targets((4, 0, 6))
        arguments = (
            *predictions(1, images=3, queries=5)[0].values(),
            targets["mask_labels"],
            [label.clamp(max=3) for label in targets["class_labels"]],
        )
        torch.manual_seed(1)
        theirs = module(*arguments)
        patch(module)
        torch.manual_seed(1)
        ours = module(*arguments)
        for mine, pair in zip(ours, theirs, strict=True):
            for index, expected in zip(mine, pair, strict=True):
                assert index.dtype == torch.int64
                assert index.tolist() == expected.tolist()

    def test_queries_that_are_not_finite_go_last(self, name: str) -> None:
        module = criterion(name).matcher
        targets = models.targets((4,))
        (layer,) = predictions(1, images=1)
        layer["masks_queries_logits"][0, 1] = torch.nan
        layer["class_queries_logits"][0, 4] = torch.inf
        arguments = (
            *layer.values(),
            targets["mask_labels"],
            [label.clamp(max=3) for label in targets["class_labels"]],
        )
        torch.manual_seed(1)
        (theirs,) = module(*arguments)
        patch(module)
        torch.manual_seed(1)
        (ours,) = module(*arguments)
        assert [x.tolist() for x in ours] == [x.tolist() for x in theirs]
        assert set(ours[0].tolist()) == {0, 2, 3, 5}
        layer["masks_queries_logits"][:] = torch.nan
        (nothing_left,) = module(*arguments)
        assert nothing_left[1].sort().values.tolist() == [0, 1, 2, 3]

    def test_bfloat16_autocast(self, name: str) -> None:
        layers, targets = predictions(), models.targets((3, 2))
        half = [{k: v.bfloat16() for k, v in layer.items()} for layer in layers]
        truth, _ = run(
            criterion(name), [{k: v.float() for k, v in x.items()} for x in half], targets
        )
        module = criterion(name)
        patch(module)
        with torch.autocast("cpu", torch.bfloat16):
            ours, gradients = run(module, half, targets)
        assert all(gradient.dtype == torch.bfloat16 for gradient in gradients)
        for key, loss in truth.items():
            # float32 inside: only the class loss, which is left to transformers, is less exact.
            torch.testing.assert_close(
                ours[key].float(), loss, rtol=2e-2 if "entropy" in key else 1e-5, atol=1e-5
            )

    def test_nothing_leaves_the_gpu(self, name: str) -> None:
        """On fake tensors of a GPU reading a value raises; a copy to the host is refused."""
        module = criterion(name)
        patch(module)
        module.get_num_masks = lambda labels, device: torch.full((), 5.0, device=device)
        with FakeTensorMode(), StayOnDevice():
            place = {"device": "cuda"}
            layers = [
                {
                    "masks_queries_logits": torch.empty(2, 6, 8, 12, **place),
                    "class_queries_logits": torch.empty(2, 6, 5, **place),
                }
                for _ in range(2)
            ]
            # Masks that are bool need no look at their values.
            targets = {
                "mask_labels": [torch.empty(n, 32, 48, dtype=torch.bool, **place) for n in (3, 8)],
                "class_labels": [torch.empty(n, dtype=torch.int64, **place) for n in (3, 8)],
            }
            module.empty_weight = torch.empty(5, **place)
            # Without a GPU there is no backward pass of fake tensors.
            result = module(*layers[-1].values(), *targets.values(), layers[:-1])
        assert len(result) == 6
        assert all(loss.device.type == "cuda" for loss in result.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["maskformer", "mask2former"])
def test_on_a_gpu(name: str) -> None:
    module = criterion(name).cuda()
    layers = [{k: v.cuda() for k, v in layer.items()} for layer in predictions()]
    targets = {k: [v.cuda() for v in tensors] for k, tensors in models.targets((3, 0)).items()}
    theirs, their_gradients = run(module, layers, targets)
    patch(module)
    ours, our_gradients = run(module, layers, targets)
    for key, loss in theirs.items():
        torch.testing.assert_close(ours[key], loss, rtol=1e-5, atol=1e-6, msg=key)
    for mine, gradient in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, gradient, rtol=1e-3, atol=1e-6)


class StayOnDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in args if isinstance(x, Tensor)]
        moved = isinstance(result, Tensor) and result.device.type == "cpu"
        if moved and any(x.device.type == "cuda" for x in given):
            pytest.fail(f"{func} copies to the host")
        return result


def test_masks_of_bool_and_float_give_the_same_points() -> None:
    masks = torch.rand(3, 9, 13) > 0.5
    where = torch.rand(3, 50, 2, dtype=torch.float64) * 1.2 - 0.1
    for points in (where, where[:1]):
        expected = point_sampling.sample(masks.double(), points)
        torch.testing.assert_close(
            point_sampling.sample(masks, points), expected, rtol=0, atol=1e-12
        )


def test_masks_with_more_pixels_than_float32_counts() -> None:
    masks = torch.zeros(1, 5000, 5000, dtype=torch.bool)
    masks[0, 4998, 4997] = True
    where = (torch.tensor([[[4997, 4998], [4998, 4998]]]) + 0.5) / 5000
    assert point_sampling.sample(masks, where)[0].tolist() == pytest.approx([1, 0], abs=1e-2)


def originals() -> list[Any]:
    return [
        vars(each.find())[each.attribute]
        for family in patching.FAMILIES
        for each in family.replacements
    ]


class TestPatching:
    def test_classes_and_back(self) -> None:
        before = originals()
        module = criterion("maskformer")
        patch()
        patched = originals()
        assert not any(a is b for a, b in zip(before, patched, strict=True))
        assert binding.is_replacement(module.forward)
        assert binding.is_replacement(criterion("mask2former").loss_masks)
        patch()
        assert all(a is b for a, b in zip(patched, originals(), strict=True))
        unpatch()
        assert all(a is b for a, b in zip(before, originals(), strict=True))
        unpatch()
        assert all(a is b for a, b in zip(before, originals(), strict=True))

    def test_it_says_what_is_patched(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "mfkernels")
        names = patch()
        assert names == patch()
        assert {"MaskFormerHungarianMatcher.forward", "Mask2FormerLoss.loss_masks"} <= set(names)
        for prefix in ("MaskFormer", "Mask2Former", "OneFormer", "Eomt"):
            for kind in ("semantic", "panoptic", "instance"):
                for ending in ("", "Pil"):
                    processor = f"{prefix}ImageProcessor{ending}"
                    assert f"{processor}.post_process_{kind}_segmentation" in names
        assert f"mfkernels replaced in every model: {', '.join(names)}" in caplog.text
        unpatch()
        model = models.build("mask2former")
        expected = ("Mask2FormerHungarianMatcher.forward", "Mask2FormerLoss.loss_masks")
        assert sorted(patch(model)) == list(expected)
        assert f"mfkernels replaced in this {type(model).__name__}: Mask2Former" in caplog.text
        assert patch(criterion=False, matcher=False, post_processing=False) == ()

    def test_some_features(self) -> None:
        before = originals()
        patch(criterion=False, post_processing=False)
        for each, (_, which) in zip(
            originals(),
            patching.chosen(frozenset(("criterion", "matcher", "post_processing"))),
            strict=True,
        ):
            assert binding.is_replacement(each) == (which.feature == "matcher")
        unpatch(matcher=False)
        assert binding.is_replacement(maskformer.MaskFormerHungarianMatcher.forward)
        unpatch()
        assert all(a is b for a, b in zip(before, originals(), strict=True))

    def test_one_instance(self) -> None:
        model, other = models.build("mask2former"), models.build("mask2former")
        before = originals()
        patch(model)
        patch(model)
        assert binding.is_replacement(model.criterion.loss_masks)
        assert binding.is_replacement(model.criterion.matcher.forward)
        assert not binding.is_replacement(other.criterion.loss_masks)
        assert all(a is b for a, b in zip(before, originals(), strict=True))
        unpatch()
        assert binding.is_replacement(model.criterion.loss_masks)
        unpatch(model)
        assert not binding.is_replacement(model.criterion.loss_masks)
        assert "loss_masks" not in vars(model.criterion)
        assert "forward" not in vars(model.criterion.matcher)

    def test_an_instance_of_patched_classes(self) -> None:
        module = criterion("maskformer")
        patch()
        patch(module)
        unpatch(module)
        assert binding.is_replacement(module.forward)
        patch(module)
        unpatch()
        assert binding.is_replacement(module.forward)
        assert getattr(module.forward, binding.ORIGINAL) is maskformer.MaskFormerLoss.forward

    def test_a_copy_is_patched_and_on_its_own(self) -> None:
        model = criterion("mask2former")
        patch(model)
        twin = copy.deepcopy(model)
        assert twin.loss_masks.__self__ is twin
        stream = io.BytesIO()
        torch.save(model, stream)
        stream.seek(0)
        loaded = torch.load(stream, weights_only=False)
        layers, targets = predictions(), models.targets((2, 1))
        expected = run(model, layers, targets)[0]
        for each in (twin, loaded):
            for key, loss in run(each, layers, targets)[0].items():
                torch.testing.assert_close(loss, expected[key])

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_a_pickled_model_comes_back_to_its_classes(self, protocol: int) -> None:
        module = criterion("mask2former")
        patch(module)
        loaded = pickle.loads(pickle.dumps(module, protocol))
        assert type(loaded) is mask2former.Mask2FormerLoss
        # Earlier versions left the class's own method bound to the module.
        vars(loaded)["loss_masks"] = loaded.loss_masks
        for bring in (unpatch, patch):
            patch()
            bring(loaded)
            assert binding.is_replacement(loaded.loss_masks)
            unpatch()
            assert binding.is_replacement(loaded.loss_masks) == (bring is patch)
            assert "loss_masks" not in vars(loaded)

    def test_a_subclass_keeps_its_own_method(self) -> None:
        class Mine(mask2former.Mask2FormerLoss):
            def loss_masks(self, *_: Any) -> dict[str, Tensor]:
                return {}

        module = criterion("mask2former")
        module.__class__ = Mine
        patch(module)
        assert not binding.is_replacement(module.loss_masks)
        assert binding.is_replacement(module.matcher.forward)

    @pytest.mark.parametrize(
        ("name", "part"),
        [
            ("maskformer", "loss_masks"),
            ("mask2former", "calculate_uncertainty"),
            ("mask2former", "sample_points_using_uncertainty"),
        ],
    )
    def test_a_part_that_a_subclass_changes_is_still_used(self, name: str, part: str) -> None:
        calls = []

        def own(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(part)
            return getattr(super(mine, self), part)(*args, **kwargs)

        module = criterion(name)
        mine = type("Mine", (type(module),), {part: own})
        module.__class__ = mine
        patch(module)
        run(module, predictions(layers=2), models.targets((2, 1)))
        assert len(calls) == 2

    @pytest.mark.parametrize("name", ["maskformer", "mask2former"])
    @pytest.mark.parametrize("part", losses._PARTS)
    def test_helpers_that_a_subclass_changes_are_called(
        self,
        name: str,
        part: str,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(losses, "_logged", set())
        module = criterion(name)
        kind = type(module)
        calls = []

        def own(self: nn.Module, *arguments: Any) -> Any:
            calls.append(part)
            return getattr(kind, part)(self, *arguments)

        module.__class__ = type(f"Own{part}", (kind,), {part: own})
        theirs, _ = run(module, predictions(), models.targets((2, 1)))
        expected = len(calls)
        patch(module)
        with caplog.at_level(logging.WARNING):
            ours, _ = run(module, predictions(), models.targets((2, 1)))
        assert len(calls) == 2 * expected > 0
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-6)
        assert any(f"has its own {part}" in said for said in caplog.messages)

    def test_a_criterion_of_a_subclass_is_called_for_each_layer(self) -> None:
        module = criterion("maskformer")
        kind: Any = type(module)

        def forward(self: nn.Module, *arguments: Any) -> dict[str, Tensor]:
            result = kind.forward(self, *arguments)
            return {**result, "extra": result["loss_mask"].detach()}

        module.__class__ = type("WithExtra", (kind,), {"forward": forward})
        theirs, _ = run(module, predictions(layers=3), models.targets((2, 1)))
        patch()
        ours, _ = run(module, predictions(layers=3), models.targets((2, 1)))
        assert {"extra", "extra_0", "extra_1"} <= ours.keys()
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-6)

    def test_what_is_no_supported_model(self) -> None:
        with pytest.raises(TypeError, match=r"torch\.nn\.Module or None, got str"):
            patch("maskformer")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="Linear has no criterion or matcher of a supported"):
            patch(nn.Linear(1, 1))


class TestRefusals:
    @pytest.fixture(autouse=True)
    def forget(self) -> Iterator[None]:
        patching.check_family.cache_clear()
        yield
        patching.check_family.cache_clear()

    def refused(self, reason: str) -> None:
        with pytest.raises(RuntimeError, match=reason):
            patch()
        for owner in vars(maskformer).values():
            if isinstance(owner, type):
                assert not any(map(binding.is_replacement, vars(owner).values()))

    @pytest.mark.parametrize("version", ["4.57.1", "5.22.0", "6.0.0.dev0"])
    def test_another_version(self, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
        self.refused(rf"supports transformers >=5\.23,<6\.0; {version} is installed")

    def test_another_signature(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def forward(self: Any, masks_queries_logits: Tensor, mask_labels: list[Tensor]) -> None: ...

        monkeypatch.setattr(mask2former.Mask2FormerHungarianMatcher, "forward", forward)
        self.refused(r"Mask2FormerHungarianMatcher\.forward takes \(self, masks_queries_logits, m")

    def test_another_loss(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dice = mask2former.dice_loss
        monkeypatch.setattr(mask2former, "dice_loss", lambda *a: 1.01 * dice(*a))
        self.refused(
            "mask2former of transformers .* differs from what mfkernels replaces: its loss_dice"
        )

    def test_another_map(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers.models.maskformer import image_processing_maskformer as processing

        segments = processing.compute_segments
        monkeypatch.setattr(
            processing, "compute_segments", lambda **k: (segments(**k)[0] + 1, segments(**k)[1])
        )
        self.refused(
            "MaskFormerImageProcessor.post_process_panoptic_segmentation gives another map"
        )

    def test_an_attribute_that_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def build(self: Any, *_: Any) -> None:
            nn.Module.__init__(self)

        monkeypatch.setattr(mask2former.Mask2FormerLoss, "__init__", build)
        self.refused("mask2former of transformers .* AttributeError")

    def test_a_class_that_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(mask2former, "Mask2FormerLoss")
        self.refused("mask2former of transformers .* no attribute .Mask2FormerLoss")

    def test_a_method_that_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(mask2former.Mask2FormerLoss, "loss_masks")
        self.refused("Mask2FormerLoss has no method loss_masks")

    def test_any_other_error_is_a_refusal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mask2former, "dice_loss", lambda *_: torch.zeros(2) @ torch.zeros(3))
        self.refused(
            "mask2former of transformers .* differs from what mfkernels replaces: RuntimeError"
        )

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_another_default_dtype(self, dtype: torch.dtype) -> None:
        torch.set_default_dtype(dtype)
        try:
            patch()
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(torch.float32)

    def test_random_numbers_are_left_alone(self) -> None:
        before = torch.get_rng_state()
        patch()
        assert torch.equal(before, torch.get_rng_state())

    def test_threads_may_patch_and_draw_random_numbers_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compare, inside = patching._compare_losses, threading.Lock()

        def compare_alone(family: patching.Family) -> None:
            assert inside.acquire(blocking=False)
            compare(family)
            inside.release()

        monkeypatch.setattr(patching, "_compare_losses", compare_alone)
        drawn = torch.Generator().set_state(torch.get_rng_state())
        draw, other = torch.Tensor.softmax, []

        def draw_meanwhile(*args: Any) -> Tensor:
            with ThreadPoolExecutor(1) as thread:  # modes belong to the thread that entered them
                other.append(thread.submit(torch.rand, 5).result())
            return draw(*args)

        modules = [criterion("mask2former") for _ in range(4)]
        with monkeypatch.context() as patches, ThreadPoolExecutor(4) as threads:
            patches.setattr(torch.Tensor, "softmax", draw_meanwhile)
            assert all(threads.map(patch, modules))
        assert other
        for numbers in other:
            assert torch.equal(numbers, torch.rand(5, generator=drawn))


def test_the_first_nan_is_the_largest() -> None:
    maps = torch.randn(9, 40)
    maps[[4, 6, 8, 1], [0, 0, 1, 2]] = torch.nan
    largest = post_processing.RunningArgmax()
    for part in maps.split(2):
        largest.add(part)
    assert torch.equal(largest.index, maps.argmax(0))


PROCESSORS = [
    each.owner
    for _, each in patching.chosen(frozenset(["post_processing"]))
    if "semantic" in each.attribute and not each.owner.startswith("Eomt")
]


@pytest.mark.parametrize("owner", PROCESSORS)
class TestPostProcessing:
    SIZES = ((23, 31), (6, 9))

    @pytest.fixture(autouse=True)
    def portions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(post_processing, "PIXELS_AT_ONCE", 3 * 23 * 31)

    def processor(self, owner: str) -> Any:
        found = next(
            each
            for _, each in patching.chosen(frozenset(["post_processing"]))
            if each.owner == owner
        )
        return object.__new__(found.find())

    def outputs(self) -> SimpleNamespace:
        generator = torch.Generator().manual_seed(0)
        return SimpleNamespace(
            class_queries_logits=4 * torch.randn(2, 11, 8, generator=generator).requires_grad_(),
            masks_queries_logits=3 * torch.randn(2, 11, 8, 10, generator=generator),
        )

    def both(self, owner: str, method: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        processor = self.processor(owner)
        theirs = getattr(processor, method)(*args, **kwargs)
        patch()
        return theirs, getattr(processor, method)(*args, **kwargs)

    def test_semantic(self, owner: str) -> None:
        for sizes in (self.SIZES, None):
            theirs, ours = self.both(
                owner, "post_process_semantic_segmentation", self.outputs(), sizes
            )
            unpatch()
            assert len(ours) == 2
            for mine, expected in zip(ours, theirs, strict=True):
                assert mine.dtype == expected.dtype
                assert torch.equal(mine, expected)

    def test_sizes_in_a_tensor(self, owner: str) -> None:
        patch()
        for method in ("semantic", "panoptic"):
            process = getattr(self.processor(owner), f"post_process_{method}_segmentation")
            result, same = (
                process(self.outputs(), target_sizes=sizes)
                for sizes in (self.SIZES, torch.tensor(self.SIZES))
            )
            for one, other in zip(result, same, strict=True):
                if method == "panoptic":
                    one, other = one["segmentation"], other["segmentation"]
                assert torch.equal(one, other)

    def test_semantic_scores(self, owner: str) -> None:
        theirs, ours = self.both(
            owner, "post_process_semantic_segmentation", self.outputs(), self.SIZES, True
        )
        for mine, expected in zip(ours, theirs, strict=True):
            assert torch.equal(mine.segmentation, expected.segmentation)
            assert torch.equal(mine.segmentation_scores, expected.segmentation_scores)

    def test_wrong_number_of_sizes(self, owner: str) -> None:
        patch()
        with pytest.raises(ValueError, match="as many target sizes"):
            self.processor(owner).post_process_semantic_segmentation(self.outputs(), [(4, 4)])

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"target_sizes": SIZES, "label_ids_to_fuse": {1, 3, 5}},
            {"target_sizes": SIZES, "label_ids_to_fuse": set(range(7)), "mask_threshold": 0.3},
            {"target_sizes": SIZES, "overlap_mask_area_threshold": 0.3},
            {"target_sizes": SIZES, "threshold": 0.999999},
        ],
    )
    def test_panoptic(self, owner: str, options: dict[str, Any]) -> None:
        theirs, ours = self.both(
            owner,
            "post_process_panoptic_segmentation",
            self.outputs(),
            **{"overlap_mask_area_threshold": 0.1, **options},
        )
        for mine, expected in zip(ours, theirs, strict=True):
            assert mine["segments_info"] == expected["segments_info"]
            assert mine["segmentation"].dtype == expected["segmentation"].dtype
            assert torch.equal(mine["segmentation"], expected["segmentation"])
