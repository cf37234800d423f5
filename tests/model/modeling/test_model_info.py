from __future__ import annotations

import pytest
import torch
from helpers.model_cases import tiny_config, tiny_model, trainable

from maskformer.modeling.model_info import model_info


def test_parts() -> None:
    config = tiny_config()
    model = tiny_model()
    info = model_info(config, (64, 96))
    assert info.size == (64, 96)
    assert info.parameters == {name: trainable(getattr(model, name)) for name in info.parameters}
    assert info.total_parameters == trainable(model)
    # Three layers, nine queries, 16 channels, 7 + 1 classes.
    assert info.multiply_adds["class_embed"] == 3 * 9 * 16 * 8
    assert info.multiply_adds["inference"] == 9 * 24 * (16 * 24) + 9 * 7 * (64 * 96)


def test_per_pixel_has_no_query_inference() -> None:
    info = model_info(tiny_config(architecture="per_pixel"), (64, 64))
    assert info.multiply_adds["inference"] == 0
    assert info.multiply_adds["classifier"] == 24 * 7 * 16 * 16
    info = model_info(tiny_config(architecture="per_pixel_plus"), (64, 64))
    assert info.multiply_adds["inference"] == 24 * 7 * 16 * 16


def test_backbone_count_by_hand() -> None:
    """FLOPs count a multiplication and its addition once."""
    config = tiny_config(backbone={"name": "resnet10t"})
    model = tiny_model(backbone={"name": "resnet10t"})
    total = 0

    def count(conv: torch.nn.Conv2d, _args: object, output: torch.Tensor) -> None:
        nonlocal total
        total += conv.weight.numel() * output.shape[2] * output.shape[3]

    for module in model.backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    assert model_info(config, (64, 64)).multiply_adds["backbone"] == total


def test_too_small() -> None:
    with pytest.raises(ValueError, match="at least 32 rows"):
        model_info(tiny_config(), (16, 64))
