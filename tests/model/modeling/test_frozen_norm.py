"""Frozen norms, alone and in the convolutions before them, are BatchNorm in evaluation."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers.model_cases import randomise, relative_error
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from maskformer.config.schema import BackboneConfig
from maskformer.modeling.backbone import Backbone
from maskformer.modeling.frozen_norm import (
    FrozenBatchNorm2d,
    NormedConv2d,
    freeze_norms,
    join_norms,
)


def test_frozen_norm_is_batch_norm_in_evaluation() -> None:
    norm = nn.BatchNorm2d(6)
    randomise(norm)
    frozen = FrozenBatchNorm2d(norm)
    x = torch.randn(3, 6, 5, 4) * 4 + 1
    assert relative_error(frozen.train()(x), norm.eval()(x)) < 1e-6
    assert not list(frozen.parameters())
    assert frozen(x.bfloat16()).dtype == torch.bfloat16
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert frozen(channels_last).is_contiguous(memory_format=torch.channels_last)


def joined(module: nn.Module) -> list[NormedConv2d]:
    return [part for part in module.modules() if isinstance(part, NormedConv2d)]


def backbone_pair(name: str) -> tuple[Backbone, Backbone]:
    """The same weights, with norms that are frozen and with ordinary ones in evaluation mode."""
    torch.manual_seed(0)
    config = BackboneConfig(name=name, frozen_norm=False)
    free = Backbone(config).eval()
    randomise(free)
    frozen = Backbone(config.model_copy(update={"frozen_norm": True}))
    frozen.load_state_dict(free.state_dict())
    join_norms(frozen)
    return frozen, free


def maps_and_gradients(backbone: Backbone, x: Tensor) -> dict[str, Tensor]:
    maps = backbone(x)
    sum(y.square().mean() for y in maps).backward()
    found = {f"map {index}": y.detach() for index, y in enumerate(maps)}
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.grad is not None
            found[name] = module.weight.grad
    return found


@pytest.mark.parametrize(("name", "convs"), [("resnet18", 20), ("resnet26", 29), ("resnet26d", 30)])
def test_maps_and_gradients_of_convolutions_with_norms(name: str, convs: int) -> None:
    frozen, free = backbone_pair(name)
    assert len(joined(frozen)) == convs
    x = torch.randn(2, 3, 64, 96)
    # In float64: in float32 a ReLU at its bend goes either way.
    expected, found = (maps_and_gradients(each.double(), x.double()) for each in (free, frozen))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert relative_error(found[key], value) < 1e-9, key


def test_bfloat16_is_as_close_as_it_was() -> None:
    frozen, _ = backbone_pair("resnet18")
    apart = copy.deepcopy(frozen)
    for conv in joined(apart):
        conv.separate()
    assert not joined(apart)
    x = torch.randn(2, 3, 64, 96)
    exact = copy.deepcopy(apart).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        maps = frozen(x), apart(x)
    for found, before, expected in zip(*maps, exact, strict=True):
        assert found.dtype == before.dtype
        assert relative_error(found, expected) <= 1.5 * relative_error(before, expected)


def test_parts_of_a_model_may_be_replaced() -> None:
    """As adapters do, and who wants another first convolution."""
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name="resnet18", frozen_norm=True))
    randomise(backbone)
    x = torch.randn(1, 3, 64, 64)
    expected = backbone(x)
    first = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    first.weight = backbone.body.conv1.weight
    backbone.body.conv1 = first
    for found, before in zip(backbone(x), expected, strict=True):
        assert relative_error(found, before) < 1e-5


def test_names_of_weights_stay() -> None:
    frozen, free = backbone_pair("resnet18")
    counters = {key for key in free.state_dict() if key.endswith("num_batches_tracked")}
    assert frozen.state_dict().keys() == free.state_dict().keys() - counters


def test_where_the_wiring_is_not_known_nothing_is_joined() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)

    module = nn.Sequential(Crossed(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    freeze_norms(module)
    join_norms(module)
    assert joined(module) == [module[1]]


def changes() -> dict[str, object]:
    def in_place(norm: FrozenBatchNorm2d) -> None:
        norm.running_var.mul_(4)

    def loaded(norm: FrozenBatchNorm2d) -> None:
        norm.load_state_dict({key: value + 1 for key, value in norm.state_dict().items()})

    def assigned(norm: FrozenBatchNorm2d) -> None:
        state = {key: value + 1 for key, value in norm.state_dict().items()}
        norm.load_state_dict(state, assign=True)

    def half(norm: FrozenBatchNorm2d) -> None:
        norm.bfloat16().float()

    return {"in place": in_place, "loaded": loaded, "assigned": assigned, "half": half}


@pytest.mark.parametrize("change", changes().values(), ids=changes().keys())
def test_statistics_that_change_are_followed(change) -> None:  # type: ignore[no-untyped-def]
    source = nn.BatchNorm2d(6)
    randomise(source)
    norm = FrozenBatchNorm2d(source)
    norm.affine()
    change(norm)
    fresh = FrozenBatchNorm2d(source)
    fresh.load_state_dict(norm.state_dict())
    assert all(map(torch.equal, norm.affine(), fresh.affine()))
    copied = copy.deepcopy(norm)
    copied.bias.add_(1)
    assert not torch.equal(copied.affine()[1], norm.affine()[1])


@pytest.mark.parametrize("how", [copy.deepcopy, lambda norm: pickle.loads(pickle.dumps(norm))])
def test_a_copy_keeps_nothing_of_the_original(how: Callable[[nn.Module], nn.Module]) -> None:
    """Its buffers count their versions anew, to numbers that those of the original had."""
    norm = FrozenBatchNorm2d(nn.BatchNorm2d(3))
    state = norm.state_dict()
    for _ in range(4):
        norm.load_state_dict({key: value + 1 for key, value in state.items()})
        norm.affine()
        copied = how(norm)
        assert isinstance(copied, FrozenBatchNorm2d)
        copied.load_state_dict({key: value + 2 for key, value in state.items()})
        assert all(map(torch.equal, copied.affine(), copied._compute_affine()))


def test_without_values_nothing_is_kept() -> None:
    norm = FrozenBatchNorm2d(nn.BatchNorm2d(3))
    with FakeTensorMode(allow_non_fake_inputs=True):
        norm.affine()
    assert all(type(values) is Tensor for values in norm.affine())


def test_weights_in_half_precision_beside_buffers_in_float32() -> None:
    """As FSDP casts parameters."""
    frozen, _ = backbone_pair("resnet10t")
    x = torch.randn(1, 3, 32, 32)
    expected = frozen(x)[-1]
    for parameter in frozen.parameters():
        parameter.data = parameter.data.bfloat16()
    assert relative_error(frozen(x.bfloat16())[-1], expected) < 0.1


def test_a_convolution_on_another_device_than_its_norm() -> None:
    """As in `DataParallel`."""
    frozen, _ = backbone_pair("resnet10t")
    conv = joined(frozen)[0].to("meta")
    assert conv(torch.empty(1, conv.in_channels, 8, 8, device="meta")).is_meta


def test_training_goes_on_after_an_evaluation() -> None:
    """What inference mode computes cannot be kept for a backward pass."""
    frozen, _ = backbone_pair("resnet18")
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        frozen(x)
    assert maps_and_gradients(frozen, x)
    with torch.inference_mode():
        made_there = Backbone(BackboneConfig(name="resnet18", frozen_norm=True))
        before = made_there(x)[-1]
        made_there.body["bn1"].bias.add_(1)
        assert not torch.equal(made_there(x)[-1], before)


def test_one_graph_when_compiled() -> None:
    frozen, _ = backbone_pair("resnet10t")
    x = torch.randn(1, 3, 32, 32)
    compiled = torch.compile(frozen, backend="eager", fullgraph=True)
    maps = compiled(x)
    torch.compiler.reset()  # else sizes that other tests compile count as ones that vary
    for found, expected in zip(maps, frozen(x), strict=True):
        assert relative_error(found, expected) < 1e-6
