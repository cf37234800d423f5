"""Linear layers computed as convolutions are linear layers."""

from __future__ import annotations

import pytest
import torch
from helpers.model_cases import relative_error
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from maskformer.config.schema import BackboneConfig
from maskformer.modeling import linear
from maskformer.modeling.backbone import Backbone
from maskformer.modeling.linear import Linear


@pytest.fixture(autouse=True)
def with_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", True)


def layers(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Linear, nn.Linear]:
    """The same layer twice: ours in `dtype` and PyTorch's in float64."""
    layer = Linear(48, 20, bias=bias, dtype=dtype)
    plain = nn.Linear(48, 20, bias=bias, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    return layer, plain


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def is_convolution(layer: nn.Module, x: Tensor) -> bool:
    with Operators() as operators:
        layer(x)
    return "aten::convolution" in operators.names


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 49), (2, 7, 9), (1, 1), (3,), (2, 3, 4, 5)])
def test_values_and_gradients(shape: tuple[int, ...], bias: bool) -> None:
    layer, plain = layers(bias=bias)
    x = torch.randn(*shape, 48, requires_grad=True)
    exact_x = x.detach().double().requires_grad_()
    y, exact = layer(x), plain(exact_x)
    assert is_convolution(layer, x)
    assert y.shape == exact.shape
    assert y.is_contiguous()
    assert relative_error(y, exact) < 1e-6
    gradient = torch.randn_like(y)
    y.backward(gradient)
    exact.backward(gradient.double())
    assert relative_error(x.grad, exact_x.grad) < 1e-6
    for ours, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) < 1e-6


def test_inputs_that_are_not_contiguous() -> None:
    layer, plain = layers()
    x = torch.randn(5, 48, 2, 3).permute(2, 0, 3, 1)
    assert relative_error(layer(x), plain(x.double())) < 1e-6


@pytest.mark.parametrize("shape", [(48,), (0, 48), (2, 0, 48)])
def test_inputs_that_a_convolution_does_not_take(shape: tuple[int, ...]) -> None:
    layer, _ = layers()
    x = torch.randn(shape)
    assert not is_convolution(layer, x)
    assert layer(x).shape == (*shape[:-1], 20)


def test_other_dtypes_and_autocast_keep_the_product() -> None:
    assert not is_convolution(layers(dtype=torch.float64)[0], torch.randn(2, 48).double())
    layer, _ = layers()
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_convolution(layer, torch.randn(2, 48))
        assert layer(torch.randn(2, 48)).dtype == torch.bfloat16


def test_exports_keep_the_product() -> None:
    program = torch.export.export(layers()[0], (torch.randn(2, 48),))
    assert {str(node.target) for node in program.graph.nodes if node.op == "call_function"} == {
        "aten.linear.default"
    }


def test_backbones_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
    config = BackboneConfig(name="swin_tiny_patch4_window7_224.ms_in1k")
    backbone = Backbone(config, **options).eval()
    assert {type(part) for part in backbone.modules() if isinstance(part, nn.Linear)} == {Linear}
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = backbone(x)
        monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", False)
        plain = backbone(x)
    for ours, theirs in zip(maps, plain, strict=True):
        assert relative_error(ours, theirs) < 1e-5
