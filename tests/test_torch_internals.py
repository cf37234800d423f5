"""PyTorch without one of the private names that are asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from mfkernels import torch_internals
from mfkernels.targets import holds_values

NAMES = (
    "_C._functorch.peek_interpreter_stack",
    "_C._functorch.is_functorch_wrapped_tensor",
    "autograd.forward_ad",
    "_C._len_torch_dispatch_stack",
    "_C._get_dispatch_mode",
    "_C._TorchDispatchModeKey",
    "_guards.active_fake_mode",
    "_subclasses.fake_tensor.FakeTensor",
    "cpu._is_amx_tile_supported",
)


@pytest.fixture
def loaded_again() -> Iterator[None]:
    yield
    importlib.reload(torch_internals)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("loaded_again")
def test_a_missing_name_is_no_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *path, attribute = name.split(".")
    owner = torch
    for part in path:
        owner = getattr(owner, part)
    monkeypatch.delattr(owner, attribute)
    importlib.reload(torch_internals)
    monkeypatch.undo()
    assert not torch_internals.is_transformed()
    assert not torch_internals.is_traced(torch.zeros(1))
    assert not torch_internals.is_observed()
    if name.startswith("cpu."):
        assert not torch_internals.has_amx()


def test_a_missing_module_is_no_error() -> None:
    assert torch_internals._found("torch._no_such_module", "name", 3) == 3
    assert "torch._no_such_module" not in sys.modules


def test_what_is_told() -> None:
    x = torch.zeros(2)
    assert holds_values(x)
    seen = []

    def look(value: torch.Tensor) -> torch.Tensor:
        seen.append((torch_internals.is_transformed(), torch_internals.is_traced(value)))
        return value.sum()

    torch.func.vmap(look)(x)
    torch.func.jvp(look, (x,), (x,))
    make_fx(look)(x)
    with FakeTensorMode():
        look(torch.zeros(2))
        assert torch_internals.is_observed()
    assert seen == [(True, True), (True, True), (False, True), (False, True)]
