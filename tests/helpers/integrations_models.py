"""Small Hugging Face transformers models with random weights, and targets for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SIZE = (64, 96)
SWIN: dict[str, Any] = {
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
POINTS = {"train_num_points": 48, "num_queries": 7, "num_labels": 5}


def maskformer(**options: Any) -> nn.Module:
    config = transformers.MaskFormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN),
        decoder_config=transformers.DetrConfig(
            d_model=32,
            decoder_layers=2,
            decoder_attention_heads=2,
            decoder_ffn_dim=64,
            num_queries=7,
            dropout=0.0,
        ),
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=5,
        **options,
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def maskformer_deep() -> nn.Module:
    return maskformer(use_auxiliary_loss=True, output_hidden_states=True)


def mask2former() -> nn.Module:
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        **POINTS,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def oneformer() -> nn.Module:
    config = transformers.OneFormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN),
        is_training=True,
        conv_dim=64,
        mask_dim=64,
        hidden_dim=64,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        dropout=0.0,
        text_encoder_width=64,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=64,
        text_encoder_n_ctx=4,
        **POINTS,
    )
    return transformers.OneFormerForUniversalSegmentation(config)


def eomt() -> nn.Module:
    config = transformers.EomtConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE[0],
        patch_size=16,
        num_blocks=2,
        num_upscale_blocks=1,
        mlp_ratio=2,
        **POINTS,
    )
    return transformers.EomtForUniversalSegmentation(config)


def eomt_dinov3() -> nn.Module:
    config = transformers.EomtDinov3Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE[0],
        patch_size=16,
        num_blocks=2,
        num_upscale_blocks=1,
        **POINTS,
    )
    return transformers.EomtDinov3ForUniversalSegmentation(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    each.__name__: each
    for each in (maskformer, maskformer_deep, mask2former, oneformer, eomt, eomt_dinov3)
}


def build(name: str) -> nn.Module:
    """A model in training mode, with noise added to its initial weights to avoid tied matches."""
    torch.manual_seed(0)
    model = MODELS[name]().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def targets(counts: tuple[int, ...], size: tuple[int, int] = SIZE) -> dict[str, list[Tensor]]:
    """Random rectangles that may overlap, as float masks."""
    generator = torch.Generator().manual_seed(3)
    masks, labels = [], []
    for count in counts:
        mask = torch.zeros(count, *size)
        for each in mask:
            top, left = (int(torch.randint(n // 2, (), generator=generator)) for n in size)
            high, wide = (int(torch.randint(8, n // 2, (), generator=generator)) for n in size)
            each[top : top + high, left : left + wide] = 1
        masks.append(mask)
        labels.append(torch.randint(5, (count,), generator=generator))
    return {"mask_labels": masks, "class_labels": labels}


def inputs(name: str, counts: tuple[int, ...] = (3, 2)) -> dict[str, Any]:
    """Everything a model needs for its loss."""
    size = (SIZE[0], SIZE[0]) if name.startswith("eomt") else SIZE
    generator = torch.Generator().manual_seed(2)
    values: dict[str, Any] = {
        "pixel_values": torch.randn(len(counts), 3, *size, generator=generator),
        **targets(counts, size),
    }
    if name == "oneformer":
        values["task_inputs"] = torch.randint(64, (len(counts), 77), generator=generator)
        texts = torch.randint(64, (len(counts), 3, 77), generator=generator)
        values["text_inputs"] = texts
    return values
