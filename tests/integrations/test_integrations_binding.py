"""Patches in copies, replicas, hooked and wrapped modules, and in subclasses."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import hooks
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from helpers import integrations_models as models  # noqa: E402
from transformers.models.mask2former import modeling_mask2former as mask2former  # noqa: E402
from transformers.models.maskformer import modeling_maskformer as maskformer  # noqa: E402

from mfkernels import use_backend  # noqa: E402
from mfkernels.integrations import point_sampling  # noqa: E402
from mfkernels.integrations.transformers import (  # noqa: E402
    binding,
    losses,
    patch,
    patching,
    unpatch,
)

MODULES = {"maskformer": maskformer, "mask2former": mask2former}
BOTH = pytest.mark.parametrize("name", list(MODULES))


@pytest.fixture(autouse=True)
def unpatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(losses, "_logged", set())
    yield
    unpatch()


@pytest.fixture
def alone() -> None:
    """No modules of other tests, which `patch()` would find."""
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def compared() -> None:
    """The first patch of a class compares it with the original, whose calls no test counts."""
    for scope in ((), *((criterion(name),) for name in MODULES)):
        patch(*scope)
        unpatch(*scope)


@pytest.fixture
def scipy_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of SciPy, which are those of a matcher that is not patched."""
    calls: list[str] = []
    for name, module in MODULES.items():
        solve = module.linear_sum_assignment

        def counted(*args: Any, _solve: Any = solve, _name: str = name) -> Any:
            calls.append(_name)
            return _solve(*args)

        monkeypatch.setattr(module, "linear_sum_assignment", counted)
    return calls


def criterion(name: str, kind: type[nn.Module] | None = None) -> nn.Module:
    family = next(each for each in patching.FAMILIES if each.name == name)
    module = family.make_criterion(MODULES[name])
    module.__class__ = kind or type(module)
    return module


def arguments(layers: int = 1) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(7)
    predictions = [
        {
            "masks_queries_logits": 3 * torch.randn(2, 6, 8, 12, generator=generator),
            "class_queries_logits": torch.randn(2, 6, 5, generator=generator),
        }
        for _ in range(layers)
    ]
    targets = models.targets((3, 2))
    labels = [label.clamp(max=3) for label in targets["class_labels"]]
    return (*predictions[-1].values(), targets["mask_labels"], labels, predictions[:-1])


def run(module: nn.Module, layers: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(5)
    result: dict[str, Tensor] = module(*arguments(layers))
    return result


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss, rtol=2e-6, atol=1e-6, msg=name)


@BOTH
@pytest.mark.parametrize(
    "twin_of", [copy.copy, copy.deepcopy, nn.Module._replicate_for_data_parallel]
)
def test_a_twin_runs_itself(name: str, twin_of: Callable[[Any], Any]) -> None:
    module = criterion(name)
    theirs = run(module)
    patch(module)
    twin = twin_of(module)
    # What DataParallel gives to a replica, and its copies leave alone.
    twin._modules, twin._buffers = dict(module._modules), {"empty_weight": torch.ones(5)}
    assert binding.is_replacement(twin.loss_masks)
    ours = run(twin)
    assert twin.forward.__self__ is twin.loss_masks.__self__ is twin
    assert float(ours["loss_cross_entropy"]) != float(theirs["loss_cross_entropy"])
    unpatch(twin)
    assert binding.is_replacement(module.loss_masks)
    assert not binding.is_replacement(twin.loss_masks)


@BOTH
def test_a_class_that_others_derive_from_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As parametrizations and `fully_shard` do: there the class cannot be put back."""
    homes = {
        "maskformer": (losses, "_dense_losses"),
        "mask2former": (point_sampling, "mask_losses"),
    }
    home, function = homes[name]
    original, served = getattr(home, function), []

    def counted(*args: Any, **named: Any) -> Any:
        served.append(name)
        return original(*args, **named)

    monkeypatch.setattr(home, function, counted)
    module = criterion(name)
    theirs = run(module)
    module.register_parameter("weight", nn.Parameter(torch.ones(2)))
    patch(module)
    nn.utils.parametrize.register_parametrization(module, "weight", nn.Identity())
    for step, is_ours in ((run, True), (unpatch, False), (patch, True), (unpatch, False)):
        step(module)
        served.clear()
        same(run(module), theirs)
        assert bool(served) == is_ours, step
    nn.utils.parametrize.remove_parametrizations(module, "weight")
    same(run(module), theirs)
    assert not served


@pytest.mark.usefixtures("alone")
class TestHooks:
    """Hooks of accelerate, which replace `forward` in the module."""

    @pytest.fixture
    def hook(self) -> Any:
        class Counting(hooks.ModelHook):  # type: ignore[misc]
            calls = 0

            def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
                self.calls += 1
                return args, kwargs

        return Counting()

    @BOTH
    @pytest.mark.parametrize("of_model", [False, True])
    @pytest.mark.parametrize("first", ["hook", "patch"])
    def test_ours_run_behind_a_hook(
        self, name: str, of_model: bool, first: str, hook: Any, scipy_calls: list[str]
    ) -> None:
        module = criterion(name)
        theirs = run(module)
        scope = (module,) if of_model else ()
        names = patch(*scope) if first == "patch" else None
        for each in (module, module.matcher):
            hooks.add_hook_to_module(each, hook)
        names = names or patch(*scope)
        assert f"{type(module.matcher).__name__}.forward" in names
        assert names.not_reached == ()

        def calls_of_a_run() -> tuple[int, int]:
            hook.calls = 0
            scipy_calls.clear()
            same(run(module), theirs)
            return hook.calls, len(scipy_calls)

        assert calls_of_a_run() == (2, 0)
        unpatch(*scope)
        assert calls_of_a_run() == (2, 2)
        patch(*scope)
        assert calls_of_a_run() == (2, 0)
        hooks.remove_hook_from_module(module, recurse=True)
        assert calls_of_a_run() == (0, 0)
        unpatch(*scope)
        assert calls_of_a_run() == (0, 2)
        patch(*scope)
        assert calls_of_a_run() == (0, 0)

    def test_hooks_of_all_modules_are_called_for_each_layer(self) -> None:
        calls = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, *_: calls.append(type(module).__name__)
        )
        module = criterion("maskformer")
        patch(module)
        try:
            run(module, layers=3)
        finally:
            handle.remove()
        assert calls.count("MaskFormerHungarianMatcher") == 3

    def test_the_hook_of_a_matcher_is_called_for_each_layer(self, hook: Any) -> None:
        module = criterion("maskformer")
        patch(module)
        hooks.add_hook_to_module(module.matcher, hook)
        run(module, layers=3)
        assert hook.calls == 3


@pytest.mark.usefixtures("alone")
@BOTH
@pytest.mark.parametrize("of_model", [False, True])
class TestWrappers:
    def wrapped(self, module: nn.Module, calls: list[Any]) -> Any:
        inner = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return inner(*args, **kwargs)

        module.forward = forward  # type: ignore[method-assign]
        return forward

    def test_what_is_not_reached_is_said(
        self, name: str, of_model: bool, scipy_calls: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        module = criterion(name)
        calls: list[Any] = []
        wrapper = self.wrapped(module.matcher, calls)
        scope = (module,) if of_model else ()
        names = patch(*scope)
        matcher = f"{type(module.matcher).__name__}.forward"
        assert (matcher in names) != of_model
        (missed,) = names.not_reached
        assert missed.startswith(matcher)
        assert "other code has set its forward to a function" in missed
        assert ("matcher: " in missed) == of_model
        assert missed in caplog.text
        run(module)
        unpatch(*scope)
        assert module.matcher.forward is wrapper
        assert (len(calls), len(scipy_calls)) == (1, 2)

    def test_a_wrapper_around_ours_outlives_it(
        self, name: str, of_model: bool, scipy_calls: list[str]
    ) -> None:
        module = criterion(name)
        scope = (module,) if of_model else ()
        patch(*scope)
        calls: list[Any] = []
        wrapper = self.wrapped(module.matcher, calls)
        run(module)
        assert (len(calls), len(scipy_calls)) == (1, 0)
        unpatch(*scope)
        run(module)
        assert (len(calls), len(scipy_calls)) == (2, 2)
        assert module.matcher.forward is wrapper


@pytest.mark.parametrize("of_model", [False, True])
@pytest.mark.parametrize("form", ["named", "wraps", "variadic"])
def test_a_patch_of_others_in_the_class_stays(
    of_model: bool, form: str, scipy_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = mask2former.Mask2FormerHungarianMatcher
    inner, calls = owner.forward, []

    def forward(
        self: Any,
        masks_queries_logits: Tensor,
        class_queries_logits: Tensor,
        mask_labels: Any,
        class_labels: Any,
    ) -> Any:
        calls.append(1)
        layer = (masks_queries_logits, class_queries_logits)
        return inner(self, *layer, mask_labels, class_labels)

    def variadic(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    forms = {"named": forward, "wraps": functools.wraps(inner)(variadic), "variadic": variadic}
    theirs = forms[form]
    monkeypatch.setattr(owner, "forward", theirs)
    module = criterion("mask2former")
    scope = (module,) if of_model else ()
    names = patch(*scope)
    run(module)
    assert owner.forward is theirs
    assert (len(calls), len(scipy_calls)) == (1, 2)
    assert "Mask2FormerHungarianMatcher.forward" not in names
    assert any("other code has replaced" in missed for missed in names.not_reached)
    assert "Mask2FormerLoss.loss_masks" in names
    unpatch(*scope)
    assert owner.forward is theirs


def test_what_wraps_ours_in_the_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, calls = maskformer.MaskFormerHungarianMatcher, []
    module = criterion("maskformer")
    theirs = run(module, layers=3)
    patch()
    ours = owner.forward

    @functools.wraps(ours)
    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return ours(*args, **kwargs)

    monkeypatch.setattr(owner, "forward", forward)
    assert "MaskFormerHungarianMatcher.forward" in patch()
    same(run(module, layers=3), theirs)
    assert len(calls) == 3
    unpatch()
    assert owner.forward is forward
    monkeypatch.undo()
    owner.forward = binding.official(ours)


class EomtStyle(mask2former.Mask2FormerLoss):
    """The form of EoMT's own repository: another `forward`, another divisor of the mask losses."""

    def forward(self, *layer: Any) -> dict[str, Tensor]:  # type: ignore[override]
        masks_queries_logits, class_queries_logits, mask_labels, class_labels = layer[:4]
        indices = self.matcher(
            masks_queries_logits=masks_queries_logits,
            class_queries_logits=class_queries_logits,
            mask_labels=mask_labels,
            class_labels=class_labels,
        )
        return {
            **self.loss_masks(masks_queries_logits, mask_labels, indices),
            **self.loss_labels(class_queries_logits, class_labels, indices),
        }

    def loss_masks(self, logits: Tensor, masks: Any, indices: Any) -> dict[str, Tensor]:  # type: ignore[override]
        losses = super().loss_masks(logits, masks, indices, 1)
        return {name: loss / 5 for name, loss in losses.items()}


class Halved(maskformer.MaskFormerLoss):
    def loss_masks(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        losses = super().loss_masks(*args, **kwargs)
        return {name: loss / 2 for name, loss in losses.items()}


class Alone(mask2former.Mask2FormerLoss):
    def loss_masks(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {"loss_mask": torch.ones(())}


class ByName(mask2former.Mask2FormerLoss):
    def loss_masks(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return mask2former.Mask2FormerLoss.loss_masks(self, *args, **kwargs)


class BelowByName(ByName):
    def loss_masks(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return super().loss_masks(*args, **kwargs)


class OtherSuper(mask2former.Mask2FormerLoss):
    def loss_masks(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {"loss_mask": super().empty_weight.sum()}


@pytest.mark.parametrize("of_model", [False, True])
class TestSubclasses:
    @pytest.mark.parametrize(
        ("kind", "layers"), [(EomtStyle, 1), (Halved, 3)], ids=["eomt", "maskformer"]
    )
    def test_what_goes_through_super_is_served(
        self,
        of_model: bool,
        kind: type[nn.Module],
        layers: int,
        scipy_calls: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        owner = kind.__mro__[1]
        (family,) = (name for name in MODULES if owner.__module__ == MODULES[name].__name__)
        module = criterion(family, kind)
        theirs = run(module, layers)
        names = patch(*((module,) if of_model else ()))
        scipy_calls.clear()
        monkeypatch.setattr(MODULES[family], "dice_loss", lambda *_: pytest.fail("theirs"))
        same(run(module, layers), theirs)
        assert scipy_calls == []
        assert f"{owner.__name__}.loss_masks" in names
        assert not any(kind.__name__ in missed for missed in names.not_reached)

    def test_what_does_not_is_said(self, of_model: bool, caplog: pytest.LogCaptureFixture) -> None:
        module = criterion("mask2former", Alone)
        names = patch(*((module,) if of_model else ()))
        (missed,) = (missed for missed in names.not_reached if "Alone" in missed)
        assert "Mask2FormerLoss.loss_masks (" in missed
        assert missed.endswith("Alone has its own loss_masks)")
        assert missed in caplog.text
        assert ("Mask2FormerLoss.loss_masks" in names) != of_model
        assert float(run(module)["loss_mask"]) == 1

    @pytest.mark.parametrize("below", [False, True])
    def test_what_goes_by_the_name_of_the_class(
        self, of_model: bool, below: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A model that is patched alone has ours in its own class only."""
        served, mask_losses = [], point_sampling.mask_losses

        def counted(*args: Any, **named: Any) -> Any:
            served.append(1)
            return mask_losses(*args, **named)

        monkeypatch.setattr(point_sampling, "mask_losses", counted)
        module = criterion("mask2former", BelowByName if below else ByName)
        theirs = run(module)
        names = patch(*((module,) if of_model else ()))
        served.clear()
        same(run(module), theirs)
        assert bool(served) != of_model
        missed = [missed for missed in names.not_reached if "ByName" in missed]
        assert bool(missed) == of_model
        assert all("calls Mask2FormerLoss.loss_masks, not super()" in each for each in missed)

    def test_super_of_another_method(self, of_model: bool) -> None:
        module = criterion("mask2former", OtherSuper)
        names = patch(*((module,) if of_model else ()))
        assert any("OtherSuper has its own loss_masks" in each for each in names.not_reached)

    def test_a_changed_part_is_said_once(
        self, of_model: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        module = criterion("mask2former")
        module.calculate_uncertainty = lambda logits: logits.abs()
        theirs = run(module)
        patch(*((module,) if of_model else ()))
        for _ in range(2):
            same(run(module), theirs)
        said = [each for each in caplog.messages if "its own calculate_uncertainty" in each]
        assert len(said) == 1


@pytest.mark.parametrize("backends", [("reference", "auto"), ("auto", "reference")])
def test_the_backend_may_change_before_the_backward_pass(backends: tuple[Any, Any]) -> None:
    """As it does on a GPU, whose gradients are computed in threads that know no request."""
    logits = torch.randn(1, 3, 6, 8, requires_grad=True)
    given = ([torch.rand(2, 12, 16) > 0.5], [(torch.tensor([2, 0]), torch.tensor([0, 1]))])
    sampling = point_sampling.Sampling(16, 3.0, 0.75)
    with use_backend(backends[0]):
        total = sum(point_sampling.mask_losses(logits, *given, sampling, unique=True))
    with use_backend(backends[1]):
        total.backward()  # type: ignore[union-attr]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_wrapper_that_somebody_puts_around_ours_into_the_class() -> None:
    model = models.mask2former()
    patch()
    ours = mask2former.Mask2FormerLoss.loss_masks
    calls = []

    @functools.wraps(ours)
    def counted(*args: Any, **named: Any) -> Any:
        calls.append(1)
        return ours(*args, **named)

    mask2former.Mask2FormerLoss.loss_masks = counted
    try:
        inputs = models.inputs("mask2former")
        model(**inputs).loss.backward()
    finally:
        mask2former.Mask2FormerLoss.loss_masks = ours
    assert calls
