"""The authors' checkpoints: what they hold decides the model, and every entry finds its place."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.model_cases import PARAMETERS, tiny_model, trainable
from helpers.official.checkpoints import Official, State, write_zoo
from torch import nn

from maskformer import LoadReport, MaskFormer, WeightsMismatchError
from maskformer.config.load import load_config, merge_model_config
from maskformer.config.schema import BackboneConfig
from maskformer.errors import ConfigError
from maskformer.modeling.backbone import Backbone
from maskformer.weights.official import infer_config
from maskformer.weights.safe_pickle.unpickle import read_pickle

SWIN = Official(swin=True, channels=(16, 32, 64, 128))
MODELS = {
    "resnet": Official(),
    "r101c": Official(deep_stem=True, depths=(1, 1, 1, 3)),
    "swin": SWIN,
    "6enc": Official(encoder_layers=2, pixel_channels=32),
    "6enc_projected": Official(encoder_layers=1),
    "per_pixel": Official(head="per_pixel"),
    "per_pixel_plus": Official(head="per_pixel_plus"),
    "per_pixel_swin": replace(SWIN, head="per_pixel"),
}
BOTTLENECK = (256, 512, 1024, 2048)
FULL: dict[str, Any] = {
    "pixel_channels": 256,
    "mask_channels": 256,
    "width": 256,
    "feedforward": 2048,
    "layers": 6,
    "queries": 100,
    "classes": 150,
}
SWIN_FULL: dict[str, Any] = {**FULL, "swin": True, "depths": (2, 2, 18, 2)}
R50: dict[str, Any] = {**FULL, "depths": (3, 4, 6, 3), "channels": BOTTLENECK}
R101: dict[str, Any] = {**FULL, "depths": (3, 4, 23, 3), "channels": BOTTLENECK}
RECIPES = {
    "ade20k/r50": R50,
    "ade20k/r101": R101,
    "ade20k/r101c": {**R101, "deep_stem": True},
    "ade20k/per_pixel_r50": {**R50, "head": "per_pixel"},
    "ade20k/per_pixel_plus_r50": {**R50, "head": "per_pixel_plus"},
    "ade20k_panoptic/r50_6enc": {**R50, "encoder_layers": 6},
    "ade20k_panoptic/r101_6enc": {**R101, "encoder_layers": 6},
    "ade20k_full/r50": {**R50, "classes": 847},
    "ade20k_full/r101": {**R101, "classes": 847},
    "ade20k_full/r101c": {**R101, "deep_stem": True, "classes": 847},
    "ade20k_full/per_pixel_r50": {**R50, "head": "per_pixel", "classes": 847},
    "ade20k_full/per_pixel_plus_r50": {**R50, "head": "per_pixel_plus", "classes": 847},
    "cityscapes/r101": {**R101, "classes": 19},
    "cityscapes/r101c": {**R101, "deep_stem": True, "classes": 19},
    "coco_stuff_10k/r50": {**R50, "classes": 171},
    "coco_stuff_10k/r101": {**R101, "classes": 171},
    "coco_stuff_10k/r101c": {**R101, "deep_stem": True, "classes": 171},
    "coco_stuff_10k/per_pixel_r50": {**R50, "head": "per_pixel", "classes": 171},
    "coco_stuff_10k/per_pixel_plus_r50": {**R50, "head": "per_pixel_plus", "classes": 171},
    "mapillary/r50": {**R50, "classes": 65},
    "coco_panoptic/r50_6enc": {**R50, "encoder_layers": 6, "classes": 133},
    "coco_panoptic/swin_b": {
        **SWIN_FULL,
        "channels": (128, 256, 512, 1024),
        "heads": (4, 8, 16, 32),
        "window": 12,
        "classes": 133,
    },
    "ade20k/swin_t": {
        **SWIN_FULL,
        "depths": (2, 2, 6, 2),
        "channels": (96, 192, 384, 768),
        "heads": (3, 6, 12, 24),
        "window": 7,
    },
    "ade20k/swin_s": {
        **SWIN_FULL,
        "channels": (96, 192, 384, 768),
        "heads": (3, 6, 12, 24),
        "window": 7,
    },
    "ade20k/swin_b": {
        **SWIN_FULL,
        "channels": (128, 256, 512, 1024),
        "heads": (4, 8, 16, 32),
        "window": 12,
    },
    "ade20k/swin_l": {
        **SWIN_FULL,
        "channels": (192, 384, 768, 1536),
        "heads": (6, 12, 24, 48),
        "window": 12,
    },
}


def read(file: Path) -> State:
    state: State = read_pickle(file)["model"]
    return state


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    different = [
        name
        for name, value in expected.items()
        if found[name].dtype != value.dtype or not np.array_equal(found[name], value)
    ]
    assert different == []


@pytest.mark.parametrize("zoo", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name: str, zoo: bool, tmp_path: Path) -> None:
    official = MODELS[name]
    if zoo:
        source = write_zoo(tmp_path / "model.pkl", official.state(zoo=True))
    else:
        source = tmp_path / "model.pth"
        state = {key: torch.from_numpy(value) for key, value in official.state(zoo=False).items()}
        training = {"iteration": 7, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}}
        torch.save({"model": state, **training}, source)
    model = MaskFormer.from_pretrained(source)
    config = model.config
    assert config.architecture == official.head
    assert config.num_classes == official.classes
    assert config.pixel_decoder.encoder_layers == official.encoder_layers
    assert config.backbone.multi_grid == ((1, 2, 4) if official.deep_stem else None)
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 64, 96))
    assert all(value.isfinite().all() for value in outputs.values())

    model.save_pretrained(tmp_path / "back", format="official")
    assert_same(read(tmp_path / "back" / "model_final.pkl"), official.state(zoo=True))

    model.save_pretrained(tmp_path / "ours")
    native = MaskFormer.from_pretrained(tmp_path / "ours")
    native.save_pretrained(tmp_path / "through_ours.pkl", format="official")
    assert_same(read(tmp_path / "through_ours.pkl"), official.state(zoo=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_models_are_recognised(recipe: str) -> None:
    """Names and shapes alone give the very configuration of the recipe."""
    official = Official(**RECIPES[recipe])
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in official.shapes().items()}
        config = infer_config(weights, "")
    expected = load_config(recipe).model
    if recipe == "coco_panoptic/swin_b":  # enforced where it happens anyway
        expected = merge_model_config(expected, {"decoder": {"enforce_input_projection": False}})
    assert config == expected
    if not official.deep_stem:
        parameters = sum(
            tensor.numel()
            for name, tensor in weights.items()
            if not re.search(r"backbone.*norm\.|_index|empty", name) or official.swin
            if not re.search(r"_index|empty", name)
        )
        assert parameters == PARAMETERS[recipe]


def test_real_resnet50(tmp_path: Path) -> None:
    official = Official(**R50)
    state = official.state(zoo=True)
    model = MaskFormer.from_pretrained(write_zoo(tmp_path / "r50.pkl", state, protocol=4))
    assert trainable(model) == 41_254_743
    assert model.config == load_config("ade20k/r50").model
    weights = model.state_dict()
    expected = {
        "backbone.body.conv1.weight": "backbone.stem.conv1.weight",
        "backbone.body.bn1.running_var": "backbone.stem.conv1.norm.running_var",
        "backbone.body.layer3.5.bn2.bias": "backbone.res4.5.conv2.norm.bias",
        "backbone.body.layer4.0.downsample.1.weight": "backbone.res5.0.shortcut.norm.weight",
        "pixel_decoder.laterals.0.norm.bias": "sem_seg_head.adapter_1.norm.bias",
        "pixel_decoder.outputs.3.conv.weight": "sem_seg_head.layer_4.weight",
    }
    for ours, theirs in expected.items():
        assert np.array_equal(weights[ours].numpy(), state[theirs])


def test_version_marks_do_not_matter(tmp_path: Path) -> None:
    """A state dict keeps PyTorch's version marks; names alone decide the layout."""
    state = {key: torch.from_numpy(value) for key, value in Official().state(zoo=False).items()}
    module = nn.Module()
    marked = module.state_dict()
    marked.update(state)
    torch.save({"model": marked}, tmp_path / "model.pth")
    assert trainable(MaskFormer.from_pretrained(tmp_path / "model.pth")) > 0


def test_constants_of_the_source_are_kept(tmp_path: Path) -> None:
    state = Official().state(zoo=True)
    state["criterion.empty_weight"][-1] = 0.4
    model = MaskFormer.from_pretrained(write_zoo(tmp_path / "a.pkl", state))
    model.save_pretrained(tmp_path / "b.pkl", format="official")
    assert_same(read(tmp_path / "b.pkl"), state)
    del state["criterion.empty_weight"]  # some files lack it
    model = MaskFormer.from_pretrained(write_zoo(tmp_path / "a.pkl", state))
    model.save_pretrained(tmp_path / "b.pkl", format="official")
    assert read(tmp_path / "b.pkl")["criterion.empty_weight"][-1] == np.float32(0.1)


def test_half_precision_and_trained_norms(tmp_path: Path) -> None:
    source = write_zoo(tmp_path / "a.pkl", Official().state(zoo=True))
    model = MaskFormer.from_pretrained(source, backbone={"frozen_norm": False})
    assert "backbone.body.bn1.num_batches_tracked" in model.state_dict()
    model.save_pretrained(tmp_path / "b.pkl", format="official")
    assert_same(read(tmp_path / "b.pkl"), Official().state(zoo=True))
    model.bfloat16().save_pretrained(tmp_path / "c.pkl", format="official")
    weight = read(tmp_path / "c.pkl")["backbone.stem.conv1.weight"]
    assert weight.dtype == np.float32
    assert torch.equal(torch.tensor(weight), model.backbone.body["conv1"].weight.float())


class TestMisfits:
    def test_strict(self, tmp_path: Path) -> None:
        state = Official().state(zoo=True)
        del state["sem_seg_head.predictor.transformer.decoder.layers.1.norm2.bias"]
        state["sem_seg_head.surplus"] = np.zeros(3, np.float32)
        file = write_zoo(tmp_path / "model.pkl", state)
        with pytest.raises(WeightsMismatchError, match="does not fit the model") as info:
            MaskFormer.from_pretrained(file)
        message = str(info.value)
        assert (
            "1 missing: sem_seg_head.predictor.transformer.decoder.layers.1.norm2.bias" in message
        )
        assert "1 unexpected: sem_seg_head.surplus" in message
        assert info.value.report.unexpected == ("sem_seg_head.surplus",)
        with pytest.warns(UserWarning, match="1 missing: .*norm2.bias"):
            model = MaskFormer.from_pretrained(file, strict=False)
        assert torch.equal(model.decoder.layers[1].norm2.bias, torch.zeros(32))

    def test_other_classes(self, tmp_path: Path) -> None:
        file = write_zoo(tmp_path / "model.pkl", Official().state(zoo=True))
        with pytest.raises(WeightsMismatchError, match="ignore_mismatched_sizes=True") as info:
            MaskFormer.from_pretrained(file, num_classes=20)
        assert "class_embed.weight [8, 32], expected [21, 32]" in str(info.value)
        with pytest.warns(UserWarning, match="2 of another shape"):
            model = MaskFormer.from_pretrained(file, num_classes=20, ignore_mismatched_sizes=True)
        assert model.config.num_classes == 20
        assert model(torch.randn(1, 3, 32, 32))["class_logits"].shape[-1] == 21
        model.save_pretrained(tmp_path / "new.pkl", format="official")
        assert read(tmp_path / "new.pkl")["criterion.empty_weight"].shape == (21,)

    def test_load_weights_reports(self, tmp_path: Path) -> None:
        file = write_zoo(tmp_path / "model.pkl", Official().state(zoo=True))
        model = MaskFormer.from_pretrained(file)
        report = model.load_weights(file)
        assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
        assert report.unused == ("criterion.empty_weight",)
        assert str(report) == f"{file} fits the model"
        assert str(LoadReport("x", missing=tuple("abcdef"))).endswith(
            "6 missing: a, b, c, d, e, ..."
        )

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["sem_seg_head.predictor.query_feat.weight"], "this looks like Mask2Former"),
            (
                ["sem_seg_head.predictor.transformer_cross_attention_layers.0.norm.weight"],
                "this looks like Mask2Former",
            ),
            (["transformer.decoder.norm.weight", "class_embed.bias"], "this looks like DETR"),
            (["roi_heads.box_head.fc1.weight"], "this looks like a detector"),
            (["conv1.weight"], "no entry starts with 'sem_seg_head.'; its entries|no entry starts"),
            (
                ["sem_seg_head.predictor.query_embed.weight"],
                "it lacks backbone.res2.0.conv2.weight",
            ),
        ],
    )
    def test_other_architectures(self, names: list[str], message: str, tmp_path: Path) -> None:
        state: State = {name: np.zeros((4, 4), np.float32) for name in names}
        with pytest.raises(ValueError, match=message):
            MaskFormer.from_pretrained(write_zoo(tmp_path / "model.pkl", state))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({}, "'test_resnet' does not exist in other formats: it is neither"),
            ({"backbone": {"name": "resnet18", "options": {"stem_width": 32}}}, "'stem_width'"),
            (
                {"backbone": {"name": "resnet18"}},
                "model.decoder.heads is 4; in all of them, it is 8",
            ),
            (
                {"backbone": {"name": "resnet50", "multi_grid": (1, 2, 4)}},
                r"model.backbone.multi_grid is \(1, 2, 4\); in all of them, it is None",
            ),
        ],
    )
    def test_what_no_official_file_can_say(
        self, changes: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        with torch.device("meta"):
            model = tiny_model(**changes)
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path / "x.pkl", format="official")
        assert not list(tmp_path.iterdir())

    def test_unknown_format(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="'native', 'hf' or 'official', got 'onnx'"):
            tiny_model().save_pretrained(tmp_path, format="onnx")  # type: ignore[arg-type]


class TestBackboneFiles:
    """ImageNet files as detectron2 and the authors' scripts make them."""

    @pytest.mark.parametrize("deep_stem", [False, True])
    def test_resnet(self, deep_stem: bool, tmp_path: Path) -> None:
        official = Official(deep_stem=deep_stem)
        state = {
            name.removeprefix("backbone."): value
            for name, value in official.state(zoo=True).items()
            if name.startswith("backbone.")
        }
        state["stem.fc.weight"] = np.zeros((10, 96), np.float32)
        file = write_zoo(tmp_path / "R-50.pkl", state)
        backbone = Backbone(self.resnet(deep_stem))
        backbone.load_weights(file)
        weights = backbone.body.state_dict()
        assert np.array_equal(weights["layer2.1.conv3.weight"], state["res3.1.conv3.weight"])
        last = "stem.conv3.norm.bias" if deep_stem else "stem.conv1.norm.bias"
        assert np.array_equal(weights["bn1.bias"], state[last])
        del state["res4.0.conv2.weight"]
        with pytest.raises(
            RuntimeError, match=r"lacks 1 floating-point entries, such as layer3.0.conv2.weight"
        ):
            Backbone(self.resnet(deep_stem)).load_weights(write_zoo(file, state))

    def test_swin(self, tmp_path: Path) -> None:
        """The converter of the Swin authors pickles PyTorch tensors."""
        config = BackboneConfig(
            name="swin_tiny_patch4_window7_224",
            options={"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8)},
        )
        official = replace(SWIN, window=7)
        state = {
            name.removeprefix("backbone."): torch.from_numpy(value)
            for name, value in official.state(zoo=True).items()
            if name.startswith(("backbone.layers", "backbone.patch"))
        }
        file = tmp_path / "swin.pkl"
        file.write_bytes(pickle.dumps({"model": state, "matching_heuristics": True}))
        backbone = Backbone(config)
        backbone.load_weights(file)
        merged = backbone.body["layers_2"].downsample.reduction.weight
        assert torch.equal(merged, state["layers.1.downsample.reduction.weight"])
        qkv = backbone.body["layers_1"].blocks[1].attn.qkv.weight
        assert torch.equal(qkv, state["layers.1.blocks.1.attn.qkv.weight"])

    @pytest.mark.parametrize(
        ("name", "options", "why"),
        [
            ("resnet18", {"depth": 3}, "TypeError: .* unexpected keyword argument 'depth'"),
            ("resnet18", {"layers": (2, 2, 2)}, "IndexError: .* out of range"),
            ("swin_tiny_patch4_window7_224", {"num_heads": (1, 2, 4)}, "IndexError: .* range"),
            ("swin_tiny_patch4_window7_224", {"num_heads": (0, 1, 1, 1)}, "ZeroDivisionError: .*"),
        ],
    )
    def test_wrong_options(self, name: str, options: Any, why: str) -> None:
        said = f"model.backbone.options: '{name}' does not accept these options: {why}"
        with pytest.raises(ConfigError, match=said):
            Backbone(BackboneConfig(name=name, options=options))

    def test_windows_without_tokens(self) -> None:
        config = BackboneConfig(name="swin_tiny_patch4_window7_224", options={"window_size": 0})
        with pytest.raises(ConfigError, match=r"model\.backbone\.options: .* must be positive"):
            Backbone(config)

    def resnet(self, deep_stem: bool) -> BackboneConfig:
        options: Any = {"layers": (1, 2, 1, 1), "channels": (8, 12, 16, 24)}
        return BackboneConfig(name="resnet50s" if deep_stem else "resnet50", options=options)
