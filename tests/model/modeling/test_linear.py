"""Linear layers computed as convolutions are linear layers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.model_cases import relative_error
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from maskformer.config.schema import BackboneConfig
from maskformer.modeling import backbone
from maskformer.modeling.backbone import Backbone
from maskformer.modeling.linear import Linear

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN"
)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def layers(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Linear, nn.Linear]:
    """The same layer twice: ours in `dtype` and PyTorch's in float64."""
    layer = Linear(48, 20, bias=bias, dtype=dtype)
    plain = nn.Linear(48, 20, bias=bias, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    return layer, plain


def uses_onednn(layer: nn.Module, x: Tensor) -> bool:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        layer(x)
    names = {event.name for event in recorded.events()}
    assert not any("slow_conv" in name or "thnn" in name for name in names)
    return "aten::mkldnn_convolution" in names


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(10, 50), (2, 17, 19), (1, 1, 500), (500,), (2, 5, 7, 9)])
def test_values_and_gradients(shape: tuple[int, ...], bias: bool) -> None:
    layer, plain = layers(bias=bias)
    x = torch.randn(*shape, 48, requires_grad=True)
    exact_x = x.detach().double().requires_grad_()
    y, exact = layer(x), plain(exact_x)
    assert uses_onednn(layer, x)
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
    x = torch.randn(15, 48, 6, 7).permute(2, 0, 3, 1)
    assert uses_onednn(layer, x)
    assert relative_error(layer(x), plain(x.double())) < 1e-6


def test_another_number_of_channels_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="to have 48 channels, but got 24"):
        layers()[0](torch.randn(1000, 24))


@pytest.mark.parametrize("shape", [(48,), (0, 48), (2, 0, 48), (4, 48)])
def test_small_inputs_keep_the_product(shape: tuple[int, ...]) -> None:
    layer, _ = layers()
    x = torch.randn(shape)
    assert not uses_onednn(layer, x)
    assert layer(x).shape == (*shape[:-1], 20)


def test_one_thread_keeps_the_product() -> None:
    torch.set_num_threads(1)
    assert not uses_onednn(layers()[0], torch.randn(500, 48))


def test_other_dtypes_and_autocast_keep_the_product() -> None:
    x = torch.randn(500, 48)
    assert not uses_onednn(layers(dtype=torch.float64)[0], x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert layers()[0](x).dtype == torch.bfloat16


@pytest.mark.parametrize("strict", [True, False])
def test_exports_keep_the_product(strict: bool) -> None:
    program = torch.export.export(layers()[0], (torch.randn(500, 48),), strict=strict)
    assert {str(node.target) for node in program.graph.nodes if node.op == "call_function"} == {
        "aten.linear.default"
    }


def test_compiled_training_with_several_sizes() -> None:
    layer, plain = layers()
    compiled = torch.compile(layer)
    for shape in ((2, 300), (5, 210), (3, 400)):
        x = torch.randn(*shape, 48, requires_grad=True)
        y = compiled(x)
        y.sum().backward()
        assert relative_error(y, plain(x.double())) < 1e-6


def test_backbones_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
    config = BackboneConfig(name="swin_tiny_patch4_window7_224.ms_in1k")
    maps, kinds = [], []
    for faster in (True, False):
        monkeypatch.setattr(backbone, "ONEDNN_IS_FASTER", faster)
        torch.manual_seed(0)
        model = Backbone(config, **options).eval()
        kinds.append({type(part) for part in model.modules() if isinstance(part, nn.Linear)})
        with torch.no_grad():
            maps.append(model(torch.ones(1, 3, 128, 128)))
    assert kinds == [{Linear}, {nn.Linear}]
    for ours, theirs in zip(*maps, strict=True):
        assert relative_error(ours, theirs) < 1e-5
