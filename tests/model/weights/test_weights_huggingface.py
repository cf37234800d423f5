"""Models that `transformers` wrote, and models that it reads: same outputs, same bits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from helpers.model_cases import randomise, relative_error, tiny_model, trainable
from safetensors.torch import load_file
from torch import nn

from maskformer import ImageProcessor, MaskFormer, WeightsMismatchError
from maskformer.config.load import load_config
from maskformer.data import Normalize
from maskformer.weights.safe_pickle.unpickle import read_pickle

transformers = pytest.importorskip("transformers")

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN_SIZES = {"depths": [1, 2, 1, 1], "embed_dim": 16, "num_heads": [1, 2, 2, 4]}
SMALL_DECODER = {
    "num_queries": 11,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
}
SMALL: dict[str, Any] = {
    "num_labels": 5,
    "fpn_feature_size": 64,
    "mask_feature_size": 24,
    "decoder_config": SMALL_DECODER,
}


def resnet(**options: Any) -> Any:
    return transformers.ResNetConfig(out_features=STAGES, **options)


def swin(**options: Any) -> Any:
    return transformers.SwinConfig(out_features=STAGES, **options)


CASES = {
    "resnet50": (lambda: resnet(), {"num_labels": 150}),
    "swin_tiny": (lambda: swin(drop_path_rate=0.3), {"num_labels": 133}),
    "resnet_small": (
        lambda: resnet(depths=[2, 1, 1, 1], hidden_sizes=[32, 48, 64, 80]),
        SMALL,
    ),
    "resnet_basic": (
        lambda: resnet(layer_type="basic", depths=[1, 2, 1, 1], hidden_sizes=[64, 40, 48, 56]),
        SMALL,
    ),
    "swin_small": (lambda: swin(window_size=5, **SWIN_SIZES), SMALL),
    "swin_wide": (
        lambda: swin(window_size=3, mlp_ratio=2.0, **SWIN_SIZES),
        {**SMALL, "num_labels": 1},
    ),
    # Features of the decoder's width are not projected.
    "unprojected": (
        lambda: resnet(depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 16, 32]),
        SMALL,
    ),
}


def make(case: str) -> nn.Module:
    backbone, options = CASES[case]
    options = dict(options)
    if "decoder_config" in options:
        options["decoder_config"] = transformers.DetrConfig(**options["decoder_config"])
    config = transformers.MaskFormerConfig(backbone_config=backbone(), **options)
    model = transformers.MaskFormerForInstanceSegmentation(config).eval()
    randomise(model)
    model.criterion.empty_weight.copy_(torch.tensor([1.0] * config.num_labels + [0.1]))
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(parameter)
    return model


def save(case: str, folder: Path) -> nn.Module:
    model = make(case)
    model.save_pretrained(folder)
    return model


def assert_same_files(found: Path, expected: Path) -> None:
    ours, theirs = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def assert_same_outputs(ours: nn.Module, theirs: nn.Module) -> None:
    for size in ((71, 101), (96, 64)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected, outputs = theirs(x), ours(x, with_mask_logits=True)
        classes, masks = outputs["class_logits"][-1], outputs["mask_logits"][-1]
        assert relative_error(classes, expected.class_queries_logits) < 1e-4
        assert relative_error(masks, expected.masks_queries_logits) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_same_outputs_and_back_with_the_same_bits(case: str, tmp_path: Path) -> None:
    theirs = save(case, tmp_path / "theirs")
    ours = MaskFormer.from_pretrained(tmp_path / "theirs")
    assert not ours.training
    assert_same_outputs(ours, theirs)

    ours.save_pretrained(tmp_path / "back", format="hf")
    assert_same_files(tmp_path / "back", tmp_path / "theirs")
    loaded, info = transformers.MaskFormerForInstanceSegmentation.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    for name, value in theirs.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    original, config = theirs.config.to_dict(), loaded.config.to_dict()
    for section in ("backbone_config", "decoder_config"):
        for key, value in original[section].items():
            if key not in ("model_type", "dtype", "_name_or_path", "architectures"):
                assert config[section][key] == value or key in UNSAID, key
    for key in ("id2label", "fpn_feature_size", "mask_feature_size", "no_object_weight"):
        assert config[key] == original[key]

    again = MaskFormer.from_pretrained(tmp_path / "back")
    assert again.config == ours.config
    assert again.class_names == ours.class_names


UNSAID = ("image_size", "backbone_config")
"""Of no consequence: the size of pre-training images, and a backbone that a decoder has not."""


@pytest.mark.parametrize(
    ("case", "recipe"), [("resnet50", "ade20k/r50"), ("swin_tiny", "coco_panoptic/swin_t")]
)
def test_published_sizes_are_the_recipes(case: str, recipe: str, tmp_path: Path) -> None:
    save(case, tmp_path)
    ours = MaskFormer.from_pretrained(tmp_path)
    expected = load_config(recipe).model
    assert ours.config.backbone == expected.backbone
    assert ours.config.pixel_decoder == expected.pixel_decoder
    assert trainable(ours) == {"resnet50": 41_254_743, "swin_tiny": 41_752_640}[case]


def test_what_ours_lacks_starts_as_it_does_there(tmp_path: Path) -> None:
    """Through our own folder, the unused norm of Swin becomes ones and zeros."""
    save("swin_small", tmp_path / "theirs")
    MaskFormer.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    ours = MaskFormer.from_pretrained(tmp_path / "ours")
    ours.save_pretrained(tmp_path / "back", format="hf")
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    different = [name for name in before if not torch.equal(before[name], after[name])]
    prefix = "model.pixel_level_module.encoder.model.layernorm"
    assert sorted(different) == [f"{prefix}.bias", f"{prefix}.weight"]
    assert torch.equal(after[f"{prefix}.weight"], torch.ones(128))
    assert not after[f"{prefix}.bias"].any()


def test_half_precision_and_trained_norms(tmp_path: Path) -> None:
    theirs = save("resnet_small", tmp_path / "theirs")
    for name, buffer in theirs.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(7)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = MaskFormer.from_pretrained(tmp_path / "theirs", backbone={"frozen_norm": False})
    ours.save_pretrained(tmp_path / "ours")  # keeps the counters
    MaskFormer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "back", format="hf")
    assert_same_files(tmp_path / "back", tmp_path / "theirs")
    assert_same_outputs(ours, theirs)
    ours.half().save_pretrained(tmp_path / "half", format="hf")
    loaded = transformers.MaskFormerForInstanceSegmentation.from_pretrained(tmp_path / "half")
    assert loaded.dtype == torch.float16
    assert torch.equal(loaded.class_predictor.weight, theirs.class_predictor.weight.half())


class TestFiles:
    def test_shards(self, tmp_path: Path) -> None:
        theirs = make("swin_small")
        theirs.save_pretrained(tmp_path, max_shard_size="1MB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
        assert_same_outputs(MaskFormer.from_pretrained(tmp_path), theirs)
        index = tmp_path / "model.safetensors.index.json"
        values = json.loads(index.read_text())
        first = next(iter(values["weight_map"]))
        for entry, message in (
            ("../model.safetensors", "outside its folder"),
            ("model-9.safetensors", r"holds no model-9\.safetensors"),
        ):
            values["weight_map"][first] = entry
            index.write_text(json.dumps(values))
            with pytest.raises((ValueError, FileNotFoundError), match=message):
                MaskFormer.from_pretrained(tmp_path)
        values["weight_map"] = {first: sorted(tmp_path.glob("*.safetensors"))[0].name, "x": ""}
        values["weight_map"]["x"] = values["weight_map"][first]
        index.write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"lists \d+ entries that are not in any file"):
            MaskFormer.from_pretrained(tmp_path)
        index.write_text("{}")
        with pytest.raises(ValueError, match="it has no weight_map"):
            MaskFormer.from_pretrained(tmp_path)

    def test_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Safetensors first; pickles only where there are none."""
        theirs = save("resnet_small", tmp_path / "hub")
        state = load_file(tmp_path / "hub" / "model.safetensors")
        torch.save(state, tmp_path / "hub" / "pytorch_model.bin")
        asked: list[list[str]] = []

        def download(repo: str, allow_patterns: list[str]) -> str:
            assert repo == "someone/maskformer"
            asked.append(allow_patterns)
            here = tmp_path / "cache"
            here.mkdir(exist_ok=True)
            for file in (tmp_path / "hub").iterdir():
                if any(file.match(pattern) for pattern in allow_patterns):
                    shutil.copy(file, here)
            return str(here)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert_same_outputs(MaskFormer.from_pretrained("someone/maskformer"), theirs)
        assert len(asked) == 1
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "hub" / "model.safetensors").unlink()
        assert_same_outputs(MaskFormer.from_pretrained("someone/maskformer"), theirs)
        assert len(asked) == 3

    @pytest.mark.parametrize("in_memory_names", [False, True])
    def test_bin(self, in_memory_names: bool, tmp_path: Path) -> None:
        theirs = save("resnet_small", tmp_path)
        file = tmp_path / "model.safetensors"
        state = theirs.state_dict() if in_memory_names else load_file(file)
        assert any(".o_proj." in name for name in state) == in_memory_names
        torch.save(state, tmp_path / "pytorch_model.bin")
        file.unlink()
        ours = MaskFormer.from_pretrained(tmp_path)
        assert_same_outputs(ours, theirs)
        (tmp_path / "pytorch_model.bin").unlink()
        with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors \(nor"):
            MaskFormer.from_pretrained(tmp_path)

    def test_index_tables_of_old_versions(self, tmp_path: Path) -> None:
        save("swin_small", tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        state = {name: value for name, value in state.items() if not name.endswith("_index")}
        torch.save(state, tmp_path / "pytorch_model.bin")
        MaskFormer.from_pretrained(tmp_path)

    def test_preprocessing(self, tmp_path: Path) -> None:
        save("resnet_small", tmp_path)
        assert MaskFormer.from_pretrained(tmp_path).config.pixel_mean == (123.675, 116.28, 103.53)
        processor = transformers.MaskFormerImageProcessor(
            image_mean=[0.5, 0.25, 0.125], size_divisor=64
        )
        processor.save_pretrained(tmp_path)
        config = MaskFormer.from_pretrained(tmp_path).config
        assert config.pixel_mean == (127.5, 63.75, 31.875)
        assert config.pixel_std == (58.395, 57.12, 57.375)
        assert config.size_divisibility == 64

    @pytest.mark.parametrize("options", [{"size_divisor": 0}, {"image_std": [0.5, 0.25, 0.125]}])
    def test_preprocessing_travels_without_a_processor(
        self, options: dict[str, Any], tmp_path: Path
    ) -> None:
        save("resnet_small", tmp_path)
        transformers.MaskFormerImageProcessor(**options).save_pretrained(tmp_path)
        model = MaskFormer.from_pretrained(tmp_path)
        for folder in (tmp_path / "again", tmp_path / "and_again"):
            model.save_pretrained(folder, format="hf")
            assert not (folder / "preprocessor_config.json").exists()
            loaded = MaskFormer.from_pretrained(folder)
            assert loaded.config == model.config
            normalize = ImageProcessor.from_pretrained(folder).normalize
            assert normalize == Normalize.from_config(model.config)
            # Theirs loads it, keeps it, and does not follow it.
            theirs = transformers.MaskFormerForInstanceSegmentation.from_pretrained(folder)
            assert theirs.config.image_preprocessing["size_divisor"] == normalize.size_divisibility
            model = loaded
        # A file of its own counts more.
        transformers.MaskFormerImageProcessor(size_divisor=64).save_pretrained(folder)
        assert MaskFormer.from_pretrained(folder).config.size_divisibility == 64

    def test_defaults_need_no_word(self, tmp_path: Path) -> None:
        save("resnet_small", tmp_path)
        MaskFormer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again", format="hf")
        assert "image_preprocessing" not in (tmp_path / "again" / "config.json").read_text()


class TestNames:
    def test_class_names_travel(self, tmp_path: Path) -> None:
        save("resnet_small", tmp_path / "a")
        config = tmp_path / "a" / "config.json"
        values = json.loads(config.read_text())
        names = ["wall", "sky", "tree", "person", "flag"]
        values["id2label"] = {str(index): names[index] for index in (4, 2, 0, 1, 3)}
        config.write_text(json.dumps(values))
        model = MaskFormer.from_pretrained(tmp_path / "a")
        assert model.class_names == tuple(names)
        model.save_pretrained(tmp_path / "b")
        model = MaskFormer.from_pretrained(tmp_path / "b")
        assert model.class_names == tuple(names)
        model.save_pretrained(tmp_path / "c", format="hf")
        assert json.loads((tmp_path / "c" / "config.json").read_text())["label2id"]["flag"] == 4
        with pytest.warns(UserWarning, match="2 of another shape: class_predictor"):
            model = MaskFormer.from_pretrained(
                tmp_path / "c", num_classes=9, ignore_mismatched_sizes=True
            )
        assert model.class_names is None

    def test_count_without_names(self, tmp_path: Path) -> None:
        save("resnet_small", tmp_path)
        config = tmp_path / "config.json"
        values = json.loads(config.read_text())
        del values["id2label"]
        values["num_labels"] = 5
        config.write_text(json.dumps(values))
        assert MaskFormer.from_pretrained(tmp_path).num_classes == 5


class TestRefusals:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        save("swin_small", tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("section", "changes", "message"),
        [
            (None, {"model_type": "mask2former"}, "model_type is 'mask2former', expected"),
            ("backbone_config", {"model_type": "timm_backbone"}, "'timm_backbone', expected swin"),
            ("backbone_config", {"use_absolute_embeddings": True}, "expected False"),
            ("backbone_config", {"hidden_act": "relu"}, "hidden_act = 'relu'.*expected 'gelu'"),
            ("decoder_config", {"model_type": "bart"}, "'bart', expected detr"),
            ("decoder_config", {"activation_function": "gelu"}, "expected 'relu'"),
            ("decoder_config", {"decoder_layers": "six"}, "decoder.layers: .*valid integer"),
            (None, {"backbone_config": []}, "model_type 'None'"),
            (None, {"id2label": 7}, "does not describe a model that can be loaded"),
        ],
    )
    def test_models_that_we_do_not_have(
        self, section: str | None, changes: dict[str, Any], message: str, folder: Path
    ) -> None:
        config = folder / "config.json"
        values = json.loads(config.read_text())
        (values[section] if section else values).update(changes)
        config.write_text(json.dumps(values))
        with pytest.raises(ValueError, match=message):
            MaskFormer.from_pretrained(folder)

    def test_truncated(self, folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:5000])
        with pytest.raises(ValueError, match="truncated or damaged"):
            MaskFormer.from_pretrained(folder)

    def test_weights_of_another_size(self, folder: Path) -> None:
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"num_queries": 11', '"num_queries": 12'))
        with pytest.raises(WeightsMismatchError, match=r"queries_embedder.weight \[11, 32\]"):
            MaskFormer.from_pretrained(folder)
        values = json.loads(config.read_text())
        values["backbone_config"]["embed_dim"] = 20
        config.write_text(json.dumps(values))
        with pytest.raises(WeightsMismatchError, match="another shape") as info:
            MaskFormer.from_pretrained(folder)
        wrong = [
            line for line in info.value.report.mismatched if "blocks.0.attention.self.query" in line
        ]
        assert any(re.search(r"weight \[16, 16\], expected \[20, 20\]", line) for line in wrong)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"architecture": "per_pixel"}, "its architecture is per_pixel"),
            ({"pixel_decoder": {"encoder_layers": 2}}, r"transformer encoder \(\+6 Enc\)"),
            ({"backbone": {"name": "resnet50s", "multi_grid": (1, 2, 4)}}, "three convolutions"),
            ({"backbone": {"name": "resnet50", "multi_grid": (1, 2, 4)}}, "dilated"),
            ({}, "not have 32 groups"),
            (
                {
                    "pixel_decoder": {"groups": 32},
                    "decoder": {"channels": 512, "enforce_input_projection": True},
                },
                "already have the decoder's width",
            ),
            ({"backbone": {"name": "test_convnext"}}, "neither a plain ResNet nor a Swin"),
        ],
    )
    def test_models_that_they_do_not_have(
        self, changes: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        with torch.device("meta"):
            model = tiny_model(**({"backbone": {"name": "resnet18"}} | changes))
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path, format="hf")
        assert not list(tmp_path.iterdir())


# The official names (docs/facts.md, Checkpoints), in terms of those of
# Hugging Face on disk.
OFFICIAL = [
    (
        r"^model\.pixel_level_module\.encoder\.embedder\.embedder\.convolution",
        "backbone.stem.conv1",
    ),
    (
        r"^model\.pixel_level_module\.encoder\.embedder\.embedder\.normalization",
        "backbone.stem.conv1.norm",
    ),
    (r"^model\.pixel_level_module\.encoder\.encoder\.stages\.0\.layers", "backbone.res2"),
    (r"^model\.pixel_level_module\.encoder\.encoder\.stages\.1\.layers", "backbone.res3"),
    (r"^model\.pixel_level_module\.encoder\.encoder\.stages\.2\.layers", "backbone.res4"),
    (r"^model\.pixel_level_module\.encoder\.encoder\.stages\.3\.layers", "backbone.res5"),
    (r"shortcut\.convolution", "shortcut"),
    (r"shortcut\.normalization", "shortcut.norm"),
    (r"(backbone\.res.*)layer\.0\.convolution", r"\1conv1"),
    (r"(backbone\.res.*)layer\.1\.convolution", r"\1conv2"),
    (r"(backbone\.res.*)layer\.2\.convolution", r"\1conv3"),
    (r"(backbone\.res.*)layer\.0\.normalization", r"\1conv1.norm"),
    (r"(backbone\.res.*)layer\.1\.normalization", r"\1conv2.norm"),
    (r"(backbone\.res.*)layer\.2\.normalization", r"\1conv3.norm"),
    (
        r"^model\.pixel_level_module\.encoder\.model\.embeddings\.patch_embeddings\.projection",
        "backbone.patch_embed.proj",
    ),
    (r"^model\.pixel_level_module\.encoder\.model\.embeddings\.norm", "backbone.patch_embed.norm"),
    (r"^model\.pixel_level_module\.encoder\.model\.encoder\.layers", "backbone.layers"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.self\.relative", "attn.relative"),
    (r"attention\.self\.(query|key|value)", r"attn.qkv"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.", "backbone.norm"),
    (r"^model\.pixel_level_module\.decoder\.fpn\.stem\.0", "sem_seg_head.layer_4"),
    (r"^model\.pixel_level_module\.decoder\.fpn\.stem\.1", "sem_seg_head.layer_4.norm"),
    *[
        (
            rf"^model\.pixel_level_module\.decoder\.fpn\.layers\.{i}\.{part}\.{j}",
            f"sem_seg_head.{name}_{3 - i}{norm}",
        )
        for i in range(3)
        for part, name in (("proj", "adapter"), ("block", "layer"))
        for j, norm in ((0, ""), (1, ".norm"))
    ],
    (r"^model\.pixel_level_module\.decoder\.mask_projection", "sem_seg_head.mask_features"),
    (r"^model\.transformer_module\.queries_embedder", "sem_seg_head.predictor.query_embed"),
    (r"^model\.transformer_module\.input_projection", "sem_seg_head.predictor.input_proj"),
    (
        r"^model\.transformer_module\.decoder\.layernorm",
        "sem_seg_head.predictor.transformer.decoder.norm",
    ),
    (r"^model\.transformer_module\.decoder", "sem_seg_head.predictor.transformer.decoder"),
    (r"(attn)\.[qkv]_proj\.", r"\1.in_proj_"),
    (r"encoder_attn_layer_norm", "norm2"),
    (r"self_attn_layer_norm", "norm1"),
    (r"final_layer_norm", "norm3"),
    (r"encoder_attn\.", "multihead_attn."),
    (r"(decoder\.layers\.\d+)\.fc", r"\1.linear"),
    (r"^class_predictor", "sem_seg_head.predictor.class_embed"),
    (r"^mask_embedder\.(\d)\.0", r"sem_seg_head.predictor.mask_embed.layers.\1"),
]


@pytest.mark.parametrize("case", ["resnet_small", "swin_small"])
def test_official_values_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    save(case, tmp_path / "theirs")
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = MaskFormer.from_pretrained(tmp_path / "theirs", decoder={"heads": 8})
    ours.save_pretrained(tmp_path / "official.pkl", format="official")
    official = read_pickle(tmp_path / "official.pkl")["model"]
    expected: dict[str, list[torch.Tensor]] = {}
    for name in sorted(state, key=query_key_value):
        if "num_batches_tracked" in name or "encoder.model.layernorm" in name:
            continue
        renamed = name
        for pattern, replacement in OFFICIAL:
            renamed = re.sub(pattern, replacement, renamed)
        expected.setdefault(renamed, []).append(state[name])
    assert official.keys() == expected.keys()
    for name, parts in expected.items():
        assert torch.equal(torch.tensor(official[name]), torch.cat(parts)), name


def query_key_value(name: str) -> int:
    """Where an entry stands in the joined one."""
    return next(
        (
            rank
            for part, rank in ((".key.", 1), ("k_proj", 1), (".value.", 2), ("v_proj", 2))
            if part in name
        ),
        0,
    )
