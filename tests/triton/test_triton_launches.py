"""How many kernels the criterion starts on a GPU in a step, counted without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.strategies import Case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mfkernels import MaskFormerCriterion, backend
from mfkernels.ops.class_loss import operator

if backend.part("triton").problem is None:
    from mfkernels.ops.loss_sums import triton_launch as loss_sums_launch

pytestmark = pytest.mark.skipif(
    backend.part("triton").problem is not None, reason=str(backend.part("triton").problem)
)

OF_AN_OPERATOR = {
    "mfkernels::assignment": 1,
    "mfkernels::matching_cost": 2,
    "mfkernels::mask_loss": 4,
    "mfkernels::mask_loss_backward": 4,
    "mfkernels::class_loss": 2,
    "mfkernels::class_loss_backward": 1,
    "mfkernels::loss_sums": 1,
}
"""Launches each; test_triton_compilation.py counts those of Triton, one more for a float32 cost."""

NONE = {
    "aten::detach",
    "aten::_unsafe_view",
    "aten::unsafe_split",
    "aten::scalar_tensor",
    "aten::promote_types",
}
"""No work on the device, beside operators that give a view."""


class Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name
        is_view = any(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        if not is_view and name not in NONE:
            self.of[name] += OF_AN_OPERATOR.get(name, 1)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same operators as with CUDA tensors, on CPU tensors, through which autograd can run."""
    for module in ("mfkernels.targets", "mfkernels.ops.mask_loss"):
        monkeypatch.setattr(f"{module}.holds_values", lambda tensor: False)
    for operation in ("class_loss", "loss_sums"):
        monkeypatch.setitem(backend.OPERATIONS, operation, {"cpu": "cpu"})
    for operation in ("class_loss", "loss_sums", "mask_loss", "matching_cost", "assignment"):
        monkeypatch.setitem(backend._reasons, (operation, "cpu"), None)
    library = torch.library.Library("mfkernels", "FRAGMENT")
    # What stands for a launch, so that the mode counts it.
    library.define("loss_sums(Tensor focal) -> (Tensor, Tensor, Tensor)")
    library.impl("loss_sums", filled(shapes_of_loss_sums), "CPU")
    monkeypatch.setattr(
        loss_sums_launch, "loss_sums", lambda focal, *_: torch.ops.mfkernels.loss_sums(focal)
    )
    library.impl("class_loss", filled(operator.fake), "CPU")
    library.impl("class_loss_backward", filled(operator.fake_backward), "CPU")
    yield
    library._destroy()


def shapes_of_loss_sums(focal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    layers = len(focal)
    return focal.new_empty(3, layers), focal.new_empty(()), focal.new_empty(2, 3, layers)


def filled(fake: Callable[..., Any]) -> Callable[..., Any]:
    """An implementation that fills its results with ones, without the dispatch mode's notice."""

    def kernel(*arguments: Any) -> Any:
        results = fake(*arguments)
        for result in [results] if isinstance(results, Tensor) else results:
            result.fill_(1)
        return results

    return kernel


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 21), (torch.float32, 22)])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_criterion_forward_and_backward(
    dtype: torch.dtype, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OF_AN_OPERATOR, "mfkernels::matching_cost", 2 + (dtype == torch.float32))
    case = Case(layers=6, counts=(3, 0, 2))
    class_logits, embed, features = case.predictions(dtype, grad=True)
    outputs = {"class_logits": class_logits, "mask_embed": embed, "pixel_features": features}
    criterion = MaskFormerCriterion(case.classes)
    targets = case.targets()
    with Launches() as launches:
        criterion.total(criterion(outputs, targets)).backward()
    assert launches.of["mfkernels::class_loss_backward"] == 1
    assert launches.of["mfkernels::mask_loss_backward"] == 4
    assert launches.of.total() <= most, sorted(launches.of.items())
    assert all(x.grad is not None for x in (class_logits, embed, features))


@pytest.mark.parametrize("slices", [True, False])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_official_form_with_six_layers(slices: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch serves all layers: slices of one tensor, and others that are small on a GPU."""
    monkeypatch.setitem(OF_AN_OPERATOR, "mfkernels::mask_loss", 3)
    monkeypatch.setitem(OF_AN_OPERATOR, "mfkernels::mask_loss_backward", 2)
    case = Case(layers=6, counts=(3, 0, 2))
    class_logits, embed, features = case.predictions(grad=True)
    logits = torch.einsum("lbqc,bchw->lbqhw", embed, features)
    of_layers = [logits.unbind(), class_logits.unbind()]
    if not slices:
        monkeypatch.setattr(Tensor, "is_cuda", True)
        of_layers = [[x.clone() for x in layers] for layers in of_layers]
    named = [{"pred_masks": x, "pred_logits": y} for x, y in zip(*of_layers, strict=True)]
    outputs = {**named[-1], "aux_outputs": named[:-1]}
    criterion = MaskFormerCriterion(case.classes)
    targets = case.targets()
    with Launches() as launches:
        total = criterion.total(criterion(outputs, targets))
        given = [x for layer in named for x in layer.values()]
        gradients = torch.autograd.grad(total, given)
    assert [x.shape for x in gradients] == [x.shape for x in given]
    assert launches.of["mfkernels::mask_loss"] == 3
    assert launches.of.total() <= 24, sorted(launches.of.items())
