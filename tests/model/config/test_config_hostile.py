"""Configurations that mean harm: refused in one line, before they take time or memory."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.model_cases import tiny_model
from safetensors.torch import load_file, save_file

from maskformer import ImageProcessor, MaskFormer
from maskformer.config.load import load_config, parse_model_config
from maskformer.data import Normalize
from maskformer.errors import ConfigError
from maskformer.modeling.base import check_size
from maskformer.system.documents import parse_yaml, read_mapping
from maskformer.weights.huggingface import huggingface_names
from maskformer.weights.name_map import depths

NESTED = 100_000


@pytest.fixture(autouse=True)
def no_memory_taken() -> Iterator[None]:
    """Fails a test that took 200 MB more than the process ever had."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < 200


def refused(call: Callable[[], object]) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(ConfigError) as info:
        call()
    message = str(info.value)
    assert "\n" not in message
    assert len(message) < 5000
    return message


def huggingface_config(**changes: Any) -> dict[str, Any]:
    """A small ResNet; `section__key` changes a key of a section."""
    values: dict[str, Any] = {
        "model_type": "maskformer",
        "backbone_config": {"model_type": "resnet", "depths": [2, 2, 2, 2]},
        "decoder_config": {"model_type": "detr"},
        "num_labels": 3,
    }
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (values[section] if section else values)[key] = value
    return values


class TestRecipes:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("[" * NESTED, "nests values more than 32 levels deep"),
            ("a: " + "{b: " * NESTED, "nests values more than 32 levels deep"),
            ("- " * NESTED, "nests values more than 32 levels deep"),
            (
                "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
                + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 20)),
                "holds more than 20,000 values",
            ),
            ("a: &a [*a]", "refers to a value that contains it"),
            ("data: {seed: " + "9" * 5000 + "}", "digits"),
            ("day: 2025-99-99", "month must be in 1..12"),
            ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
            ("? [a, b]\n: c", "unhashable key"),
            ("\x00", "not readable as YAML"),
            ("x: [" + "1," * 30_000 + "]", "holds more than 20,000 values"),
            ("base: " + "x/" * 2000, "names a base of 4,000 characters"),
            ("".join(f"k{n}: 1\n" for n in range(5000)), "and 4991 more"),
        ],
    )
    def test_files(self, content: str, said: str, tmp_path: Path) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_text(content)
        assert said in refused(lambda: load_config(file))

    def test_length_and_encoding(self, tmp_path: Path) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_bytes(b"#" * (17 << 20))
        assert "17,825,792 bytes, expected at most 16,777,216" in refused(lambda: load_config(file))
        file.write_bytes(b"a: \xff")
        assert "'utf-8' codec" in refused(lambda: load_config(file))

    def test_long_chain_of_bases(self, tmp_path: Path) -> None:
        for number in range(30):
            (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\n")
        assert "more than 16 recipes" in refused(lambda: load_config(tmp_path / "0.yaml"))

    def test_aliases_are_read(self, tmp_path: Path) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_text("data: {format: shapes, image_size: &size [64, 96]}\nmodel: {}\n")
        assert load_config(file).data.format == "shapes"
        file.write_text("x: &x {format: shapes, seed: 3}\ndata: *x\n")
        assert "x: unknown key" in refused(lambda: load_config(file))

    @pytest.mark.parametrize(
        "override",
        [
            *(f"model.{key}=1000000000" for key in ("num_classes", "size_divisibility")),
            *(f"model.decoder.{key}=1000000000" for key in ("queries", "channels", "layers")),
            *(f"model.decoder.{key}=1000000000" for key in ("heads", "feedforward")),
            *(f"model.pixel_decoder.{key}=1000000000" for key in ("channels", "encoder_layers")),
            "model.backbone.multi_grid=[1,1,1000000000]",
            "model.backbone.options={layers: [1000000000, 1, 1, 1]}",
            "model.backbone.options={layers: [300, 300, 1, 1]}",
            "model.backbone.options={depths: " + str([1] * 30_000) + "}",
            "model.backbone.options={window_size: 1000}",
            "model.backbone.options={mlp_ratio: .inf}",
            "model.backbone.options={mlp_ratio: .nan}",
            "model.backbone.options={features_only: 0}",
            "model.backbone.options={num_classes: 1000}",
            "model.backbone.options={checkpoint_path: 1}",
            "model.backbone.name=" + "x" * 100_000,
            "model.pixel_mean=[.nan, 0, 0]",
            "model.pixel_std=[0, 1, 1]",
            "model.decoder.dropout=.nan",
            "data.image_size=[1000000000, 3]",
            "data.test_short_side=1000000000",
            "train.batch_size=100000000000",
            "train.workers=1000000000",
            "eval.tta.scales=[1000000]",
            "a." * 50_000 + "b=1",
        ],
    )
    def test_values(self, override: str) -> None:
        refused(lambda: load_config("quickstart", [override]))

    @pytest.mark.parametrize(
        ("override", "bound"),
        [
            ("train.seed=-1", "greater than or equal to 0"),
            ("train.seed=4294967296", "less than 4294967296"),
            ("data.seed=-1", "greater than or equal to 0"),
            ("train.process_timeout=1e30", "less than or equal to 10000000"),
            ("train.epochs=1e300", "less than or equal to 1000000"),
            ("model.pixel_std=[1e-300, 1, 1]", "greater than or equal to 0.000001"),
            ("model.pixel_std=[1, 1, 1e300]", "less than or equal to 1000000"),
            ("model.pixel_mean=[1e308, 1, 1]", "less than or equal to 1000000"),
            ("model.pixel_mean=[-1e308, 1, 1]", "greater than or equal to -1000000"),
            ("criterion.alpha=1e30", "less than or equal to 1"),
            ("criterion.class_weight=1e300", "less than or equal to 1000000"),
            ("criterion.mask_weight=1e300", "less than or equal to 1000000"),
            ("criterion.dice_weight=1e300", "less than or equal to 1000000"),
            ("criterion.no_object_weight=1e300", "less than or equal to 1000000"),
            ("criterion.class_weights=[1e300]", "less than or equal to 1000000"),
            ("criterion.class_weights={a: 1e300}", "less than or equal to 1000000"),
        ],
    )
    def test_numbers_that_no_library_takes(self, override: str, bound: str) -> None:
        said = refused(lambda: load_config("quickstart", [override]))
        assert override.partition("=")[0] in said
        assert bound in said

    def test_sizes_that_each_may_be(self) -> None:
        sizes = {"channels": 1 << 14, "feedforward": 1 << 16, "layers": 64}
        config = parse_model_config({"num_classes": 3, "decoder": sizes})
        assert "bytes of memory" in refused(lambda: check_size(config))
        with pytest.raises(ConfigError, match="bytes of memory"):
            MaskFormer.from_config("ade20k/r50", decoder=sizes)


class TestFolders:
    @pytest.mark.parametrize(
        "changes",
        [
            {"num_labels": 10**9},
            {"num_labels": -1},
            {"id2label": {str(n): "x" for n in range(70_000)}},
            {"id2label": {"9" * 5000: "x"}},
            {"id2label": {"0": "x" * 10**6}},
            {"id2label": {"0": ["x"]}},
            {"id2label": {"first": "x"}},
            {"fpn_feature_size": 10**9},
            {"mask_feature_size": 1e308},
            {"decoder_config__num_queries": 10**9},
            {"decoder_config__d_model": 10**9},
            {"decoder_config__decoder_layers": 10**9},
            {"decoder_config__decoder_ffn_dim": 10**30},
            {"decoder_config__dropout": math.nan},
            {"decoder_config": "detr" * 100_000},
            {"backbone_config__depths": [1] * 30_000},
            {"backbone_config__depths": [10**9] * 4},
            {"backbone_config__depths": "3463"},
            {"backbone_config__hidden_sizes": [10**9] * 4},
            {"backbone_config__hidden_sizes": None},
            {"backbone_config": {"model_type": "swin", "depths": [1] * 30_000}},
            {"backbone_config": {"model_type": "swin", "window_size": 10_000}},
            {"backbone_config": {"model_type": "swin", "mlp_ratio": math.inf}},
            {"backbone_config": {"model_type": ["swin"] * 30_000}},
        ],
    )
    def test_transformers(self, changes: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(huggingface_config(**changes)))
        refused(lambda: MaskFormer.from_pretrained(tmp_path))

    @pytest.mark.parametrize(
        "changes",
        [
            {"model": 3},
            {"model": {"num_classes": 10**9}},
            {"model": {"num_classes": 3, "backbone": {"options": {"features_only": 0}}}},
            {"classes": ["x"] * 70_000},
            {"classes": 7},
            {"classes": [1, 2]},
            {"model": None},
        ],
    )
    def test_native(self, changes: dict[str, Any], tmp_path: Path) -> None:
        values = {"library": "maskformer", "model": {"num_classes": 3}} | changes
        (tmp_path / "config.json").write_text(json.dumps(values))
        refused(lambda: MaskFormer.from_pretrained(tmp_path))

    @pytest.mark.parametrize(
        "content", ["[" * NESTED, '{"a":' * NESTED, '{"a":' * 40 + "1" + "}" * 40]
    )
    def test_depth(self, content: str, tmp_path: Path) -> None:
        for name in ("config.json", "preprocessor_config.json", "model.safetensors.index.json"):
            (tmp_path / name).write_text(content)
            assert "deep" in refused(lambda n=name: read_mapping(tmp_path / n))  # type: ignore[misc]
        refused(lambda: MaskFormer.from_pretrained(tmp_path))
        refused(lambda: ImageProcessor.from_pretrained(tmp_path))

    @pytest.mark.parametrize("name", ["decoder", "pixel_decoder"])
    def test_other_sizes_than_the_weights(self, name: str, tmp_path: Path) -> None:
        """Within the bounds, but not what the file holds: found on the meta device."""
        tiny_model().save_pretrained(tmp_path)
        values = json.loads((tmp_path / "config.json").read_text())
        values["model"][name]["channels"] = 1 << 14
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match="of another shape"):
            MaskFormer.from_pretrained(tmp_path)
        allowed = {"strict": False, "ignore_mismatched_sizes": True}
        with pytest.warns(UserWarning, match="of another shape"):
            assert "its weights take" in refused(
                lambda: MaskFormer.from_pretrained(tmp_path, **allowed)
            )


@pytest.mark.timeout(60)  # the time is what these test
class TestNames:
    def test_counters(self, tmp_path: Path) -> None:
        """They took minutes, where each was compared with all others."""
        tiny_model().save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        weights = load_file(file)
        many = {f"x{n}.num_batches_tracked": torch.zeros(0) for n in range(30_000)}
        save_file(weights | many, file)
        MaskFormer.from_pretrained(tmp_path)

    def test_stages(self) -> None:
        names = [f"backbone.layers.{n}.blocks.0." for n in range(30_000)]
        assert depths(names, r"backbone\.layers\.(\d+)\.blocks\.(\d+)\.") == (1,) * 30_000

    def test_long_names(self) -> None:
        name = "transformer_module.decoder." * 40
        huggingface_names().to_ours({name: torch.zeros(1)}, {}, "x")


class TestImageProcessor:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ({"short_side": 0}, "short_side"),
            ({"short_side": -5}, "short_side"),
            ({"short_side": 10**9}, "short_side"),
            ({"short_side": "512"}, "short_side"),
            ({"short_side": True}, "short_side"),
            ({"short_side": 512.5}, "short_side"),
            ({"short_side": math.nan}, "short_side"),
            ({"max_side": 0}, "max_side"),
            ({"max_side": [1]}, "max_side"),
            ({"normalize": None}, "normalize"),
            ({"normalize": Normalize(std=(0.0, 1.0, 1.0))}, r"normalize\.std"),
            ({"normalize": Normalize(std=(-1.0, 1.0, 1.0))}, r"normalize\.std"),
            ({"normalize": Normalize(std=(math.nan, 1.0, 1.0))}, r"normalize\.std"),
            ({"normalize": Normalize(std=(1.0, 1.0))}, r"normalize\.std"),  # type: ignore[arg-type]
            ({"normalize": Normalize(mean=(math.inf, 0.0, 0.0))}, r"normalize\.mean"),
            ({"normalize": Normalize(mean="abc")}, r"normalize\.mean"),  # type: ignore[arg-type]
            ({"normalize": Normalize(size_divisibility=-32)}, r"normalize\.size_divisibility"),
            ({"normalize": Normalize(size_divisibility=10**9)}, r"normalize\.size_divisibility"),
        ],
    )
    def test_arguments(self, arguments: dict[str, Any], named: str) -> None:
        with pytest.raises(ValueError, match=f"^{named} must be .*, got "):
            ImageProcessor(**arguments)

    @pytest.mark.parametrize(
        "values",
        [
            {"rescale_factor": 0},
            {"rescale_factor": 1e-320, "image_mean": [0.5, 0.5, 0.5]},
            {"rescale_factor": "x"},
            {"image_std": [0, 1, 1]},
            {"image_std": [1]},
            {"image_mean": [math.nan] * 3},
            {"image_mean": 7},
            {"size": 0},
            {"size": 10**9},
            {"size": -5},
            {"size": {"shortest_edge": "a"}},
            {"size": [[]]},
            {"max_size": -1},
            {"size_divisor": 10**9},
            {"size_divisor": -1},
            {"do_resize": {}},
        ],
    )
    def test_files(self, values: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        said = refused(lambda: ImageProcessor.from_pretrained(tmp_path))
        assert "preprocessor_config.json" in said


def test_a_key_that_is_there_twice_is_refused() -> None:
    for text, key in (("train: {}\ndata: {}\ntrain: {}", "train"), ("m: {0: a, 1: b, 0: c}", "0")):
        with pytest.raises(ConfigError, match=f"the key '{key}' occurs twice .* line"):
            parse_yaml(text)
    merged = "a: &x {k: 1, l: 2}\nb: {<<: *x, k: 3}"
    assert parse_yaml(merged)["b"] == {"k": 3, "l": 2}


@pytest.mark.parametrize("value", ["!!int ''", "!!float ''", "!!bool abc", "!!timestamp abc"])
def test_a_value_that_does_not_fit_its_tag_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a valid (int|float|bool|timestamp) .*line 1"):
        parse_yaml(f"a: {value}")
    with pytest.raises(ConfigError, match="expected a scalar node"):
        parse_yaml("a: !!int [1]")
