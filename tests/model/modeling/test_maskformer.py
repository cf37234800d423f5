from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers.model_cases import (
    TINY,
    randomise,
    relative_error,
    tiny_config,
    tiny_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskformer.config.schema import ModelConfig
from maskformer.errors import ConfigError, UsageError, WeightsError
from maskformer.modeling.base import SegmentationModel, build_model
from maskformer.modeling.maskformer import MaskFormer
from maskformer.modeling.per_pixel import PerPixelBaseline, PerPixelBaselinePlus
from maskformer.weights import files

SWIN = {"name": "swin_tiny_patch4_window7_224"}
ARCHITECTURES = ["maskformer", "per_pixel", "per_pixel_plus"]


def images(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width)


@pytest.mark.parametrize(
    ("architecture", "output", "dim"),
    [
        ("maskformer", "class_logits", -1),
        ("per_pixel", "pixel_logits", 2),
        ("per_pixel_plus", "pixel_logits", 2),
    ],
)
def test_classes_in_another_order(architecture: str, output: str, dim: int) -> None:
    model = tiny_model(architecture=architecture).double()
    randomise(model)
    pixels, order = images().double(), [3, 1, 0, 6, 5, 2, 4]
    before = model(pixels)[output]
    model.reorder_classes(order)
    expected = before.index_select(dim, torch.tensor([*order, *range(7, before.shape[dim])]))
    assert relative_error(model(pixels)[output], expected) < 1e-9
    assert not torch.equal(before, expected)


class TestForward:
    @pytest.mark.parametrize("size", [(64, 64), (32, 32), (75, 101), (33, 160)])
    @pytest.mark.parametrize("encoder_layers", [0, 2])
    def test_shapes(self, size: tuple[int, int], encoder_layers: int) -> None:
        model = tiny_model(pixel_decoder={"encoder_layers": encoder_layers})
        outputs = model(images(*size))
        h, w = (-(-side // 4) for side in size)
        assert {name: tuple(value.shape) for name, value in outputs.items()} == {
            "class_logits": (3, 2, 9, 8),
            "mask_embed": (3, 2, 9, 24),
            "pixel_features": (2, 24, h, w),
        }

    def test_mask_logits_on_request(self) -> None:
        outputs = tiny_model()(images(), with_mask_logits=True)
        layer, image, query = 1, 1, 5
        expected = torch.tensordot(
            outputs["mask_embed"][layer, image, query], outputs["pixel_features"][image], dims=1
        )
        assert relative_error(outputs["mask_logits"][layer, image, query], expected) < 1e-5

    def test_heads_are_shared_by_all_layers(self) -> None:
        model = tiny_model()
        assert isinstance(model, MaskFormer)
        states: list[Tensor] = []
        model.decoder.register_forward_hook(lambda _module, _args, output: states.append(output))
        outputs = model(images())
        for layer in range(3):
            assert torch.equal(outputs["class_logits"][layer], model.class_embed(states[0][layer]))

    def test_per_pixel_shapes(self) -> None:
        outputs = tiny_model(architecture="per_pixel")(images(75, 101))
        assert outputs["pixel_logits"].shape == (1, 2, 7, 19, 26)

    def test_per_pixel_plus_has_a_query_per_class(self) -> None:
        model = tiny_model(architecture="per_pixel_plus")
        assert isinstance(model, PerPixelBaselinePlus)
        assert model.decoder.query_embed.weight.shape == (7, 16)
        assert model(images(75, 101))["pixel_logits"].shape == (1, 2, 7, 19, 26)
        assert model.train()(images())["pixel_logits"].shape == (3, 2, 7, 16, 24)

    def test_per_pixel_plus_last_layer_is_the_same_in_both_modes(self) -> None:
        model = tiny_model(architecture="per_pixel_plus", decoder={"dropout": 0.0})
        x = images()
        final = model(x)["pixel_logits"][-1]
        assert relative_error(model.train()(x)["pixel_logits"][-1], final) < 1e-5

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_images_of_a_batch_do_not_mix(self, architecture: str) -> None:
        model = tiny_model(architecture=architecture, pixel_decoder={"encoder_layers": 1})
        x = images(batch=3)
        with torch.no_grad():
            together, alone = model(x), model(x[1:2])
        for name, value in alone.items():
            images_axis = 0 if name == "pixel_features" else 1
            assert relative_error(together[name].narrow(images_axis, 1, 1), value) < 1e-4

    def test_channels_last(self) -> None:
        model, x = tiny_model(), images()
        with torch.no_grad():
            expected = model(x)
            model = model.to(memory_format=torch.channels_last)
            outputs = model(x.to(memory_format=torch.channels_last))
        assert outputs["pixel_features"].is_contiguous(memory_format=torch.channels_last)
        for name in outputs:
            assert relative_error(outputs[name], expected[name]) < 1e-3

    def test_autocast(self) -> None:
        model, x = tiny_model(), images()
        with torch.no_grad():
            exact = model(x)
            with torch.autocast("cpu", torch.bfloat16):
                outputs = model(x)
        assert outputs["pixel_features"].dtype == torch.bfloat16
        for name in outputs:
            assert relative_error(outputs[name].float(), exact[name]) < 0.1

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    @pytest.mark.parametrize("backbone", ["test_resnet", "resnet10t", "test_convnext"])
    def test_gradients_reach_every_parameter(self, backbone: str, architecture: str) -> None:
        model = tiny_model(
            architecture=architecture,
            backbone={"name": backbone},
            pixel_decoder={"encoder_layers": 1},
        ).train()
        randomise(model)
        outputs = model(images())
        if "mask_embed" in outputs:
            outputs["masks"] = torch.einsum(
                "lbqc,bchw->lbqhw", outputs.pop("mask_embed"), outputs.pop("pixel_features")
            )
        torch.stack([value.square().sum() for value in outputs.values()]).sum().backward()
        without = [name for name, p in model.named_parameters() if p.grad is None]
        assert without == []
        silent = {name for name, p in model.named_parameters() if not p.grad.abs().max()}
        # The first self-attention sees zeros as values.
        assert silent <= {"decoder.layers.0.self_attn.in_proj_weight"}

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_compiles_without_graph_breaks(self, architecture: str) -> None:
        model = tiny_model(architecture=architecture, pixel_decoder={"encoder_layers": 1})
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        x = images()
        with torch.no_grad():
            expected, outputs = model(x), compiled(x)
        for name, value in outputs.items():
            assert relative_error(value, expected[name]) < 1e-5

    def test_swin_compiles_without_graph_breaks(self) -> None:
        model = tiny_model(backbone=SWIN)
        compiled = torch.compile(model.backbone, backend="eager", fullgraph=True)
        x = images(batch=1)
        with torch.no_grad():
            for value, expected in zip(compiled(x), model.backbone(x), strict=True):
                assert relative_error(value, expected) < 1e-5

    @pytest.mark.parametrize(
        ("x", "error", "message"),
        [
            (torch.zeros(3, 64, 64), ValueError, r"\[B, 3, H, W\], got shape \[3, 64, 64\]"),
            (torch.zeros(1, 4, 64, 64), ValueError, r"got shape \[1, 4, 64, 64\]"),
            (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "got torch.uint8"),
            (torch.zeros(1, 3, 31, 64), ValueError, "at least 32 rows and columns"),
        ],
    )
    def test_wrong_inputs(self, x: Tensor, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            tiny_model()(x)


class TestPadding:
    SIZES = ((64, 96), (50, 64))

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_attention_leaves_it_out_where_asked_to(self, architecture: str) -> None:
        """The features of whole cells of padding change nothing but themselves."""
        options = {"architecture": architecture, "pixel_decoder": {"encoder_layers": 1}}
        model = tiny_model(**options, decoder={"mask_padding": True})
        official = tiny_model(**options)
        official.load_state_dict(model.state_dict())
        x = images()
        name = "pixel_logits" if architecture.startswith("per_pixel") else "class_logits"
        plain = model(x)[name]
        assert torch.equal(official(x, image_sizes=self.SIZES)[name], plain)
        assert relative_error(model(x, image_sizes=((64, 96),) * 2)[name], plain) < 1e-5
        masked = model(x, image_sizes=self.SIZES)[name]
        assert relative_error(masked[:, 0], plain[:, 0]) < 1e-5
        assert relative_error(masked[:, 1], plain[:, 1]) > 1e-4

    @pytest.mark.parametrize("sizes", [((64, 96),), ((64, 96), (65, 96)), ((64, 96), (0, 96))])
    def test_sizes_that_do_not_fit(self, sizes: tuple[tuple[int, int], ...]) -> None:
        model = tiny_model(decoder={"mask_padding": True})
        message = "image_sizes must be 2 pairs of height and width, at most 64 and 96, got"
        with pytest.raises(ValueError, match=message):
            model(images(), image_sizes=sizes)


class TestBuilding:
    def test_from_config_overrides(self) -> None:
        with torch.device("meta"):
            model = MaskFormer.from_config("ade20k/r50", num_classes=20, decoder={"queries": 50})
        assert isinstance(model, MaskFormer)
        assert model.config.num_classes == 20
        assert model.config.decoder.queries == 50
        assert model.config.decoder.layers == 6
        assert model.class_embed.weight.shape == (21, 256)
        assert model.decoder.query_embed.weight.shape == (50, 256)

    def test_from_config_file(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text(json.dumps({"model": TINY, "data": {"format": "shapes"}}))
        model = MaskFormer.from_config(file)
        assert model.config == tiny_config()

    @pytest.mark.parametrize(
        ("architecture", "cls"),
        [
            ("maskformer", MaskFormer),
            ("per_pixel", PerPixelBaseline),
            ("per_pixel_plus", PerPixelBaselinePlus),
        ],
    )
    def test_architecture_decides_the_class(
        self, architecture: str, cls: type[SegmentationModel]
    ) -> None:
        assert type(tiny_model(architecture=architecture)) is cls

    def test_no_classes(self) -> None:
        with pytest.raises(ValueError, match=r"model.num_classes: .*pass num_classes=K"):
            tiny_model(num_classes=None)

    def test_unknown_keys(self) -> None:
        with pytest.raises(ConfigError, match=r"did you mean 'decoder\.queries'"):
            MaskFormer.from_config("ade20k/r50", decoder={"querys": 50})

    def test_backbone_weights_are_passed_on(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"none\.pth"):
            tiny_model().load_backbone_weights(str(tmp_path / "none.pth"))

    def test_per_pixel_initialisation(self) -> None:
        model = build_model(tiny_config(architecture="per_pixel", num_classes=500))
        assert isinstance(model, PerPixelBaseline)
        assert model.classifier.weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.03)
        assert model.classifier.bias is not None
        assert not model.classifier.bias.any()


class TestSaving:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_round_trip(self, architecture: str, tmp_path: Path) -> None:
        model = tiny_model(architecture=architecture)
        nn.init.normal_(model.backbone.body["bn1"].running_mean)
        model.save_pretrained(tmp_path / "new" / "folder")
        loaded = MaskFormer.from_pretrained(tmp_path / "new" / "folder")
        assert type(loaded) is type(model)
        assert loaded.config == model.config
        assert not loaded.training
        x = images()
        with torch.no_grad():
            expected, outputs = model(x), loaded(x)
        for name, value in outputs.items():
            assert torch.equal(value, expected[name])
        assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
            "config.json",
            "model.safetensors",
        ]

    def test_round_trip_of_channels_last_and_half(self, tmp_path: Path) -> None:
        model = tiny_model().to(memory_format=torch.channels_last)
        model.save_pretrained(tmp_path)
        loaded = MaskFormer.from_pretrained(str(tmp_path))
        weight = loaded.pixel_decoder.mask_features.weight
        assert torch.equal(weight, model.pixel_decoder.mask_features.weight)

    def test_failed_write_keeps_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tiny_model()
        model.save_pretrained(tmp_path)
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

        def fill_disk(_weights: object, file: Path, **_options: object) -> None:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files, "save_file", fill_disk)
        with pytest.raises(OSError, match="No space left"):
            model.save_pretrained(tmp_path)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before

    def test_truncated_weights(self, tmp_path: Path) -> None:
        tiny_model().save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        for length in (file.stat().st_size // 2, 5, 0):
            file.write_bytes(file.read_bytes()[:length])
            with pytest.raises(ValueError, match=rf"\({length:,} bytes\) is truncated or damaged"):
                MaskFormer.from_pretrained(tmp_path)

    def test_weights_of_another_model(self, tmp_path: Path) -> None:
        tiny_model(num_classes=11).save_pretrained(tmp_path)
        config = tmp_path / "config.json"
        values = json.loads(config.read_text())
        values["model"].update(num_classes=7, architecture="per_pixel_plus")
        config.write_text(json.dumps(values))
        with pytest.raises(ValueError, match="does not fit the model") as info:
            MaskFormer.from_pretrained(tmp_path)
        message = str(info.value)
        assert "2 unexpected: class_embed.weight, class_embed.bias" in message or (
            "2 unexpected: class_embed.bias, class_embed.weight" in message
        )
        assert "1 of another shape: decoder.query_embed.weight [9, 16], expected [7, 16]" in message

    def test_other_classes_without_counters_of_batch_norm(self, tmp_path: Path) -> None:
        """Formats of other libraries leave them out, since nothing needs them."""
        backbone = tiny_config().backbone.model_copy(update={"frozen_norm": False})
        config = tiny_config().model_copy(update={"backbone": backbone, "num_classes": 3})
        MaskFormer(config).save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        weights = load_file(file)
        kept = {name: x for name, x in weights.items() if "num_batches_tracked" not in name}
        assert len(kept) < len(weights)
        save_file(kept, file)
        model = MaskFormer(config.model_copy(update={"num_classes": 7}))
        with pytest.warns(UserWarning, match="2 of another shape"):
            report = model.load_weights(tmp_path, ignore_mismatched_sizes=True)
        assert report.class_head == (3, 7)

    def test_missing_weights_are_listed(self, tmp_path: Path) -> None:
        tiny_model(architecture="per_pixel").save_pretrained(tmp_path)
        config = tmp_path / "config.json"
        config.write_text(config.read_text().replace('"per_pixel"', '"maskformer"'))
        with pytest.raises(ValueError, match=r"missing: decoder.*, \.\.\.\n.*2 unexpected"):
            MaskFormer.from_pretrained(tmp_path)

    def test_absent_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no such folder: .*a/b/c"):
            MaskFormer.from_pretrained("a/b/c")
        with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
            MaskFormer.from_pretrained(tmp_path)
        tiny_model().save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
            MaskFormer.from_pretrained(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.pkl"):
            MaskFormer.from_pretrained("models/none.pkl")
        with pytest.raises(ValueError, match="is a file; give the folder"):
            MaskFormer.from_pretrained(tmp_path / "config.json")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"model"', "is damaged"),
            ("[]", "must hold a mapping, got list"),
            ('{"model_type": "detr"}', "its model_type is 'detr', expected 'maskformer'"),
            ('{"model_type": "maskformer"}', "its decoder_config has the model_type 'None'"),
            ('{"library": "maskformer"}', "is not valid in this version"),
            ('{"library": "maskformer", "model": {"x": 1}}', "x: unknown key"),
        ],
    )
    def test_foreign_config(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            MaskFormer.from_pretrained(tmp_path)

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_another_number_of_names(self, tmp_path: Path, count: int) -> None:
        """As a person may leave them; the model would go on without any."""
        tiny_model(num_classes=2).save_pretrained(tmp_path)
        file = tmp_path / "config.json"
        values = json.loads(file.read_text()) | {"classes": ["name"] * count}
        file.write_text(json.dumps(values))
        said = rf"{file} is not valid .*: classes has {count} names, expected 2 as in"
        with pytest.raises(ConfigError, match=said):
            MaskFormer.from_pretrained(tmp_path)
        model = tiny_model(num_classes=2)
        model.class_names = ("name",) * count
        with pytest.raises(WeightsError, match=f"class_names has {count} names, expected one for"):
            model.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_a_config_that_is_no_text(self, tmp_path: Path) -> None:
        tiny_model().save_pretrained(tmp_path)
        (tmp_path / "config.json").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match=r"is damaged: 'utf-8'") as caught:
            MaskFormer.from_pretrained(tmp_path)
        assert str(caught.value).count("is damaged") == 1

    def test_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_model()
        model.save_pretrained(tmp_path)
        asked = []

        def download(repo: str, allow_patterns: list[str]) -> str:
            asked.append((repo, sorted(allow_patterns)))
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert MaskFormer.from_pretrained("someone/maskformer").config == model.config
        [(repo, patterns)] = asked
        assert repo == "someone/maskformer"
        assert {"config.json", "*.safetensors"} <= set(patterns)

    def test_unreachable_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> str:
            raise OSError("name or service not known")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(RuntimeError, match=r"'a/b' is not a local folder, .*service not known"):
            MaskFormer.from_pretrained("a/b")


class Own(MaskFormer):
    """As a user changes one."""


def test_classes_of_users(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "queries")
    tiny_model(architecture="per_pixel").save_pretrained(tmp_path / "pixels")
    assert type(Own.from_pretrained(tmp_path / "queries")) is Own
    assert type(Own.from_config("quickstart", num_classes=3)) is Own
    assert type(MaskFormer.from_pretrained(tmp_path / "pixels")) is PerPixelBaseline
    with pytest.raises(ConfigError, match="Own does not inherit from it"):
        Own.from_pretrained(tmp_path / "pixels")


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    model = tiny_model()
    model.class_embed = nn.Linear(model.class_embed.in_features, 3)
    with pytest.raises(WeightsError, match=r"class_embed\.weight is \[3, \d+\], but in a model"):
        model.save_pretrained(tmp_path / "head")
    model = tiny_model()
    nn.utils.parametrizations.weight_norm(model.class_embed)
    with pytest.raises(WeightsError, match=r"class_embed\.weight is missing"):
        model.save_pretrained(tmp_path / "norm")
    model = tiny_model()
    model.extra = nn.Linear(2, 3)
    with pytest.raises(WeightsError, match=r"extra\.weight is \[3, 2\], but .* missing"):
        model.save_pretrained(tmp_path / "extra")
    assert not list(tmp_path.iterdir())


class Wrapped(MaskFormer):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.class_embed = nn.Sequential(self.class_embed)


def test_a_class_of_a_user_goes_to_a_folder_and_back(tmp_path: Path) -> None:
    model = Wrapped(tiny_config())
    model.save_pretrained(tmp_path)
    again = Wrapped.from_pretrained(tmp_path)
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_state_dicts(prefix: str, tmp_path: Path) -> None:
    model = tiny_model()
    state = {prefix + name: values for name, values in model.state_dict().items()}
    others = {"criterion.empty_weight": torch.ones(3)} if prefix else {}
    torch.save({"state_dict": state | others}, tmp_path / "last.ckpt.pth")
    other = tiny_model()
    randomise(other)
    assert not other.load_weights(tmp_path / "last.ckpt.pth").missing
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
    with pytest.raises(WeightsError, match="build it with from_config, then load_weights"):
        MaskFormer.from_pretrained(tmp_path / "last.ckpt.pth")


def test_a_backbone_of_one_size_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(backbone={"name": "efficientformer_l1"}).eval()
    model(images(224, 224, batch=1))
    with pytest.raises(
        UsageError, match=r"takes images of \(224, 224\) pixels only, got \(256, 320\)"
    ):
        model(images(256, 320))

    def full(_: Tensor) -> list[Tensor]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model.backbone, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        model(images(256, 320))
