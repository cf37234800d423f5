"""The Swin of timm (version 1), adapted to the one that MaskFormer was published with."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torch.nn import functional

from maskformer.errors import ConfigError
from maskformer.modeling.linear import Linear
from mfkernels import window_attention
from mfkernels.ops.window_attention import is_faster
from mfkernels.ops.window_attention.reference import from_windows, to_windows
from mfkernels.torch_internals import has_hooks

_PRIVATE = {
    SwinTransformerBlock: ("_attn", "get_attn_mask"),
    WindowAttention: ("_get_rel_pos_bias",),
}
"""Private methods of timm: `PadFirstSwinBlock` overrides the first and calls the others."""


class PadFirstSwinBlock(SwinTransformerBlock):
    """A Swin block that pads to whole windows before the cyclic shift, as the original code does.

    timm shifts before it pads, so its windows differ if the map size is not a multiple of the
    window size.
    """

    def _attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        window, shift = self.window_size, self.shift_size
        if _is_fused(self.attn, x, window):
            return _attend(self.attn, x, window, shift)
        x = functional.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
        padded = (x.shape[1], x.shape[2])
        mask = None
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
            mask = self.get_attn_mask(x)
        x = from_windows(self.attn(to_windows(x, window), mask=mask), window, padded)
        if any(shift):
            x = torch.roll(x, shift, (1, 2))
        return x[:, :height, :width]


def _is_fused(attention: nn.Module, x: Tensor, window: tuple[int, int]) -> bool:
    """Whether `mfkernels.window_attention` computes the same, and faster."""
    # An adapter in the place of the linear layer may not turn zeros into a bias; hooks expect
    # windows and their scores.
    return (
        type(attention) is WindowAttention
        and type(attention.qkv) in (nn.Linear, Linear)
        and type(attention.softmax) is nn.Softmax
        and not _drops(attention.attn_drop, attention.training)
        and not any("forward" in vars(part) or has_hooks(part) for part in attention.modules())
        and is_faster(x, attention.qkv.out_features // (3 * attention.num_heads), window)
    )


def _drops(dropout: nn.Module, training: bool) -> bool:
    """Whether this may drop scores: also in evaluation, if only dropout is in training mode."""
    return type(dropout) is not nn.Dropout or (dropout.p > 0 and (training or dropout.training))


def _attend(
    attention: WindowAttention, x: Tensor, window: tuple[int, int], shift: tuple[int, int]
) -> Tensor:
    """Compute from a map `[B, H, W, C]` what `attention` computes from its padded windows."""
    shape = (3, attention.num_heads, -1)
    qkv = attention.qkv(x).unflatten(-1, shape)
    padding = None if attention.qkv.bias is None else attention.qkv.bias.view(shape)
    bias = attention._get_rel_pos_bias()[0]
    y = window_attention(qkv, bias, window, shift, padding)
    y = attention.proj(y.flatten(-2))
    return attention.proj_drop(y)


def adapt_swin(body: Any) -> bool:
    """Give the blocks of a Swin (version 1) the original padding; return whether it is one."""
    blocks = [module for module in body.modules() if type(module) is SwinTransformerBlock]
    missing = [
        name for owner, names in _PRIVATE.items() for name in names if not hasattr(owner, name)
    ]
    if blocks and missing:
        raise ConfigError(
            f"model.backbone.name: the Swin of timm {timm.__version__} has no {missing[0]}, which "
            "is needed to apply the original padding; install timm 1.0.31, which was tested"
        )
    for block in blocks:
        if min(block.window_size) < 1:  # before 1.0.31, timm accepts them and fails later
            raise ConfigError(
                f"model.backbone.options: window sizes must be positive, got {block.window_size}"
            )
        block.__class__ = PadFirstSwinBlock  # same parameters, different `_attn`
    if blocks:
        body.patch_embed.dynamic_img_pad = True
    return bool(blocks)
