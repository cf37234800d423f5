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

pytestmark = pytest.mark.skipif(
    backend.part("triton").problem is not None, reason=str(backend.part("triton").problem)
)

OF_AN_OPERATOR = {
    "mfkernels::assignment": 1,
    "mfkernels::matching_cost": 2,
    "mfkernels::mask_loss": 3,
    "mfkernels::mask_loss_backward": 5,
    "mfkernels::class_loss": 2,
    "mfkernels::class_loss_backward": 1,
}
"""Launches each; test_triton_compilation.py counts those of Triton, one more for a float32 cost."""

NONE = {"aten::detach", "aten::_unsafe_view", "aten::scalar_tensor", "aten::promote_types"}
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
    monkeypatch.setitem(backend.OPERATIONS, "class_loss", {"cpu": "cpu"})
    for operation in ("class_loss", "mask_loss", "matching_cost", "assignment"):
        monkeypatch.setitem(backend._reasons, (operation, "cpu"), None)
    library = torch.library.Library("mfkernels", "IMPL")
    library.impl("class_loss", filled(operator.fake), "CPU")
    library.impl("class_loss_backward", filled(operator.fake_backward), "CPU")
    yield
    library._destroy()


def filled(fake: Callable[..., Any]) -> Callable[..., Any]:
    """An implementation that fills its results with ones, without the dispatch mode's notice."""

    def kernel(*arguments: Any) -> Any:
        results = fake(*arguments)
        for result in [results] if isinstance(results, Tensor) else results:
            result.fill_(1)
        return results

    return kernel


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 40), (torch.float32, 41)])
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
    assert launches.of["mfkernels::mask_loss_backward"] == 5
    assert launches.of.total() <= most, sorted(launches.of.items())
    assert all(x.grad is not None for x in (class_logits, embed, features))
