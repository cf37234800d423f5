"""Parts of a model that do not learn."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.model_cases import tiny_model
from torch import nn

from maskformer.config.schema import BackboneConfig
from maskformer.errors import ConfigError
from maskformer.modeling.backbone import Backbone
from maskformer.modeling.parts import BACKBONE_PARTS, modules_of_part


class Wrapped(nn.Module):
    """As much of a model as has a backbone."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = Backbone(BackboneConfig(name=name, frozen_norm=False))


@pytest.mark.parametrize(
    ("name", "stem", "stage1", "stage3"),
    [
        ("resnet18", {"conv1", "bn1"}, {"layer1"}, {"layer3"}),
        ("swin_tiny_patch4_window7_224", {"patch_embed"}, {"layers_0"}, {"layers_2"}),
        ("convnext_tiny", {"stem_0", "stem_1"}, {"stages_0"}, {"stages_2"}),
        # The first of its blocks has stride 2 and belongs to the stem; two have stride 16.
        ("lcnet_050", {"conv_stem", "bn1", "blocks.0"}, {"blocks.1"}, {"blocks.3", "blocks.4"}),
        ("densenet121", {"features_conv0", "features_norm0"}, {"features_denseblock1"}, None),
    ],
)
def test_the_parts_of_a_backbone_are_disjoint_and_complete(
    name: str, stem: set[str], stage1: set[str], stage3: set[str] | None
) -> None:
    with torch.device("meta"):
        model = Wrapped(name)
    names = {module: key for key, module in model.backbone.body.named_modules()}
    parts = [modules_of_part(model, part) for part in BACKBONE_PARTS]
    with_weights = [
        {names[m] for m in modules if m in names and any(True for _ in m.parameters())}
        for modules in parts
    ]
    assert with_weights[0] == stem
    assert with_weights[1] == stage1
    if stage3 is not None:
        assert with_weights[3] == stage3
    found = [id(p) for modules in parts for m in modules for p in m.parameters()]
    assert sorted(found) == sorted(id(p) for p in model.backbone.parameters())


def test_the_output_norms_of_a_swin_belong_to_their_stages() -> None:
    with torch.device("meta"):
        model = Wrapped("swin_tiny_patch4_window7_224")
    assert model.backbone.norms is not None
    assert model.backbone.norms[1] in modules_of_part(model, "stage2")


def test_stages_that_cannot_be_told_apart() -> None:
    with torch.device("meta"):
        model = Wrapped("hrnet_w18_small")
    with pytest.raises(ConfigError, match=r"train\.freeze: .*hrnet_w18_small.*backbone as a whole"):
        modules_of_part(model, "stage1")
    assert modules_of_part(model, "backbone") == [model.backbone]


def test_frozen_parts_stay_as_they_are_while_the_rest_trains() -> None:
    model = tiny_model(backbone={"name": "lcnet_050", "frozen_norm": False})
    model.freeze(["stem", "stage1", "pixel_decoder"])
    body = model.backbone.body
    for copied in (model.train(), copy.deepcopy(model).train()):
        body = copied.backbone.body
        assert not body.bn1.training
        assert not body.blocks[1].training
        assert body.blocks[2].training
        assert copied.decoder.training
        assert not any(p.requires_grad for p in copied.pixel_decoder.parameters())
        assert all(p.requires_grad for p in body.blocks[2].parameters())
    assert model.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()(torch.randn(2, 3, 64, 64))["class_logits"].sum().backward()
    assert torch.equal(
        model.backbone.body.bn1.running_mean, before["backbone.body.bn1.running_mean"]
    )
    changed = "backbone.body.blocks.2.0.bn1.running_mean"
    assert not torch.equal(model.state_dict()[changed], before[changed])


def test_parts_that_are_not_there() -> None:
    model = tiny_model(architecture="per_pixel")
    with pytest.raises(ConfigError, match=r"train\.freeze: PerPixelBaseline has no part 'decoder'"):
        model.freeze(["decoder"])


def test_stages_of_a_users_backbone() -> None:
    model = tiny_model()
    model.backbone = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ConfigError, match="stages of your Sequential are not known"):
        model.freeze(["stage1"])
    model.freeze(["backbone"])
    assert not model.backbone[0].weight.requires_grad


def test_a_model_needs_something_to_learn() -> None:
    model = tiny_model()
    for name in ("class_embed", "mask_embed"):
        getattr(model, name).requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter would be left"):
        model.freeze(["backbone", "pixel_decoder", "decoder"])
