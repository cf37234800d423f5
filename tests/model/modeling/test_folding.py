"""Norms folded into convolutions give the same maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskformer.config.load import parse_model_config
from maskformer.modeling.base import SegmentationModel, build_model
from maskformer.modeling.folding import fold_norms

DECODER = {"queries": 4, "channels": 16, "heads": 2, "feedforward": 16, "layers": 1}
NORMS = (nn.BatchNorm2d, torch.nn.Module)


def model_on(backbone: str, frozen: bool = False) -> SegmentationModel:
    """With statistics as after training."""
    torch.manual_seed(0)
    model = build_model(
        parse_model_config(
            {
                "num_classes": 3,
                "backbone": {"name": backbone, "pretrained": False, "frozen_norm": frozen},
                "pixel_decoder": {"channels": 16, "mask_channels": 16, "groups": 4},
                "decoder": DECODER,
            }
        )
    )
    for name, values in model.backbone.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            values.uniform_(0.5, 2)
    return model


def norms_in(model: SegmentationModel) -> int:
    return sum(
        "running_mean" in dict(module.named_buffers(recurse=False)) for module in model.modules()
    )


@pytest.mark.parametrize(
    ("backbone", "frozen"),
    [("resnet18", True), ("resnet26", False), ("efficientnet_lite0", False), ("lcnet_050", True)],
)
def test_maps_stay(backbone: str, frozen: bool) -> None:
    model = model_on(backbone, frozen)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    images = torch.randn(2, 3, 64, 96)
    folded = fold_norms(model)
    assert norms_in(model) > 0 == norms_in(folded)
    with torch.inference_mode():
        expected, found = model(images), folded(images)
    for name, values in expected.items():
        scale = float(values.abs().max())
        torch.testing.assert_close(found[name], values, rtol=0, atol=2e-5 * scale)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_a_backbone_without_norms_is_the_same_model() -> None:
    model = model_on("swin_tiny_patch4_window7_224")
    assert fold_norms(model) is model
    assert not model.training


class Crossed(nn.Module):
    """Lists a convolution right before a norm that reads something else."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.body(self.conv(self.norm(x)))


def test_a_backbone_that_is_wired_otherwise_stays_as_it_is() -> None:
    model = model_on("resnet18")
    crossed = Crossed(model.backbone.body)
    crossed.norm.running_mean.uniform_(0.5, 2)  # type: ignore[union-attr]
    model.backbone.body = crossed
    assert fold_norms(model) is model


def test_a_backbone_that_takes_no_small_image_stays_as_it_is() -> None:
    model = model_on("inception_v4")
    assert fold_norms(model) is model
