"""The adapted Swin: padding, windows, and both ways to compute the attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from helpers.model_cases import relative_error
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from maskformer.config.schema import BackboneConfig
from maskformer.errors import ConfigError
from maskformer.modeling import backbone, swin
from maskformer.modeling.backbone import Backbone

SWIN_T = "swin_tiny_patch4_window7_224.ms_in1k"
SMALL_SWIN = {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4)}
SWINS = (SMALL_SWIN, SMALL_SWIN | {"embed_dim": 16, "num_heads": (1, 2, 4, 8)})
"""The window attention of mfkernels serves heads of multiples of 16 channels: in the second half of
the stages here, or in all."""


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width)


def test_output_norms_do_not_touch_the_next_stage() -> None:
    backbone = Backbone(BackboneConfig(name=SWIN_T), **SMALL_SWIN).eval()
    x = images(64, 96)
    with torch.no_grad():
        before = backbone(x)
        assert backbone.norms is not None
        for norm in backbone.norms:
            assert norm.eps == 1e-5
            nn.init.constant_(norm.weight, 3.0)
            nn.init.constant_(norm.bias, -1.0)
        after = backbone(x)
    for a, b in zip(after, before, strict=True):
        assert relative_error(a, 3 * b - 1) < 1e-5


def test_layer_norms_and_windows() -> None:
    with torch.device("meta"):
        backbone = Backbone(BackboneConfig(name=SWIN_T, drop_path=0.3))
    norms = [module for module in backbone.modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
    blocks = [block for index in range(4) for block in backbone.body[f"layers_{index}"].blocks]
    assert {block.window_size for block in blocks} == {(7, 7)}
    assert [block.shift_size for block in blocks] == [(0, 0), (3, 3)] * 6
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.3 * index / 11 for index in range(12)])
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks]


def test_no_drop_path_unless_asked_for() -> None:
    with torch.device("meta"):
        backbone = Backbone(BackboneConfig(name=SWIN_T))
    assert not [module for module in backbone.modules() if "DropPath" in type(module).__name__]


@pytest.mark.parametrize("small", SWINS)
def test_equals_timm_where_windows_fit(small: dict[str, Any]) -> None:
    backbone = Backbone(BackboneConfig(name=SWIN_T), **small).eval()
    reference = timm.create_model(
        SWIN_T, features_only=True, strict_img_size=False, always_partition=True, **small
    ).eval()
    reference.load_state_dict(backbone.body.state_dict())
    x = images(224, 448)
    with torch.no_grad():
        for ours, theirs in zip(backbone.body(x), reference(x), strict=True):
            assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("small", SWINS)
def test_opposite_edges_do_not_meet(small: dict[str, Any]) -> None:
    """Padding before the shift keeps rolled-in rows apart; padding after it would not."""
    backbone = Backbone(BackboneConfig(name=SWIN_T), **small).eval()
    block = backbone.body["layers_0"].blocks[1]
    x = torch.randn(1, 12, 12, small["embed_dim"], requires_grad=True)
    block(x)[0, 11, 11].sum().backward()
    assert x.grad is not None
    reached = x.grad[0].abs().sum(-1).nonzero()
    # Padded to 14 and rolled by 3, the last window of a side holds rows 10 and 11, two rows of
    # padding and, in a region of their own, rows 0 to 2.
    assert reached.tolist() == [[10, 10], [10, 11], [11, 10], [11, 11]]


def test_both_ways_of_attention_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's, in padded windows, and that of mfkernels; features and gradients, odd sizes."""
    backbone = Backbone(BackboneConfig(name=SWIN_T), **SWINS[1]).double()
    for parameter in backbone.parameters():  # biases, too
        nn.init.normal_(parameter, std=0.1)
    calls = []
    monkeypatch.setattr(swin, "is_faster", lambda _, channels, __: channels == 16)
    fused = swin.window_attention
    monkeypatch.setattr(
        swin, "window_attention", lambda *given: calls.append(given) or fused(*given)
    )
    x = images(68, 150).double()

    def features_and_gradients() -> list[Tensor]:
        maps = backbone(x)
        factors = [torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) for y in maps]
        total = sum((y * f).sum() for y, f in zip(maps, factors, strict=True))
        return [*maps, *torch.autograd.grad(total, list(backbone.parameters()))]

    found = features_and_gradients()
    assert len(calls) == 8
    monkeypatch.setattr(swin, "is_faster", lambda *_: False)
    torch.testing.assert_close(found, features_and_gradients(), rtol=1e-8, atol=1e-10)
    assert len(calls) == 8


@pytest.fixture
def block_in_windows(monkeypatch: pytest.MonkeyPatch) -> SwinTransformerBlock:
    """A shifted block; a call of the window attention of mfkernels fails."""
    monkeypatch.setattr(swin, "is_faster", lambda *_: True)
    monkeypatch.setattr(swin, "window_attention", lambda *_: pytest.fail("not in windows"))
    backbone = Backbone(BackboneConfig(name=SWIN_T), **SWINS[1])
    block: SwinTransformerBlock = backbone.body["layers_0"].blocks[1]
    return block


@pytest.mark.parametrize("module", ["", "qkv", "softmax", "attn_drop", "proj", "anywhere"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_run(module: str, kind: str, block_in_windows: SwinTransformerBlock) -> None:
    """On the modules that timm calls, with windows or their scores."""
    seen = []

    def hook(called: nn.Module, *given: Any) -> None:
        seen.append((called, given[0][0].shape))

    attention = block_in_windows.attn
    if module == "anywhere":
        target, register = attention.softmax, f"register_module_{kind}_hook"
        handle = getattr(nn.modules.module, register)(hook)
    else:
        target = attention.get_submodule(module)
        handle = getattr(target, f"register_{kind}_hook")(hook)
    with handle:
        block_in_windows(torch.randn(1, 9, 9, 16, requires_grad=True)).sum().backward()
    shapes = [tuple(shape) for called, shape in seen if called is target]
    assert len(shapes) == 1
    assert shapes[0][0] == 4


def test_dropout_of_scores(block_in_windows: SwinTransformerBlock) -> None:
    """In training, and also if only dropout is (Monte Carlo dropout)."""
    x = torch.randn(1, 9, 9, 16)
    dropout = block_in_windows.attn.attn_drop
    dropout.p = 0.5
    assert not torch.equal(block_in_windows(x), block_in_windows(x))
    block_in_windows.eval()
    dropout.train()
    assert not torch.equal(block_in_windows(x), block_in_windows(x))


class Doubled(nn.Linear):
    """Its bias is not what it makes of zeros."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("qkv", nn.Sequential),
        ("qkv", lambda _: Doubled(16, 48)),
        ("softmax", lambda _: nn.Softmin(-1)),
        ("attn_drop", nn.Sequential),
    ],
)
def test_replaced_modules_run(
    name: str, other: Callable[[nn.Module], nn.Module], block_in_windows: SwinTransformerBlock
) -> None:
    """Such as adapters in the place of linear layers."""
    attention = block_in_windows.attn
    setattr(attention, name, other(attention.get_submodule(name)))
    block_in_windows(torch.randn(1, 9, 9, 16))


def test_a_replaced_forward_runs(
    block_in_windows: SwinTransformerBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries that move parameters between devices replace it in each module."""
    attention, seen = block_in_windows.attn, []
    forward = attention.forward
    monkeypatch.setattr(
        attention, "forward", lambda *given, **named: seen.append(1) or forward(*given, **named)
    )
    block_in_windows(torch.randn(1, 9, 9, 16))
    assert seen == [1]


def test_a_timm_with_other_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its own padding would serve, and every result be another one."""
    monkeypatch.delattr(SwinTransformerBlock, "_attn")
    with pytest.raises(ConfigError, match=r"the Swin of timm .* has no _attn, .* install timm"):
        Backbone(BackboneConfig(name=SWIN_T), **SMALL_SWIN)


def test_images_smaller_than_a_window_and_odd_sizes() -> None:
    backbone = Backbone(BackboneConfig(name=SWIN_T), **SMALL_SWIN).eval()
    with torch.no_grad():
        maps = backbone(images(33, 35))
    assert [tuple(y.shape[2:]) for y in maps] == [(9, 9), (5, 5), (3, 3), (2, 2)]


def test_models_pickled_whole_find_their_blocks() -> None:
    """Blocks had their class in `backbone` before."""
    assert backbone.PadFirstSwinBlock is swin.PadFirstSwinBlock
