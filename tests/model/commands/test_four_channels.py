"""Images of four bands and 12 bits: trained on, scored, predicted on, and not exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.recipes import TINY
from PIL import Image

from maskformer import ImageProcessor, MaskFormer
from maskformer.cli import main
from maskformer.errors import WeightsError

CHANNELS = 4


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["maskformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, and its data."""
    root = tmp_path_factory.mktemp("channels")
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / name).mkdir()
    for number in range(2):
        labels = (np.mgrid[:64, :72][1] > 30).astype(np.uint8)
        values = labels[..., None] * np.uint16(2000) + rng.integers(0, 2000, (64, 72, CHANNELS))
        np.save(root / f"images/{number}.npy", values.astype(np.uint16))
        Image.fromarray(labels).save(root / f"labels/{number}.png")
    split = {"images": "images", "labels": "labels"}
    recipe = {
        **TINY,
        "data": {
            "format": "folder", "root": str(root), "train": split, "val": split,
            "classes": ["low", "high"], "channels": CHANNELS, "value_range": [0, 4095],
            "augmentation": {"kind": "semantic", "short_sides": [64], "crop": [64, 64]},
            "test_short_side": 64,
        },
        "train": {**TINY["train"], "steps": 2, "evaluate_every": 2},
        "eval": {"batch_size": 2, "pictures": 2},
    }  # fmt: skip
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert not run("train", "--cpu", "--config", root / "recipe.yaml", "--output", root / "run")
    return root


def test_the_checkpoint_records_the_channels(trained: Path) -> None:
    model = MaskFormer.from_pretrained(trained / "run")
    assert model.config.num_channels == CHANNELS
    assert model.config.pixel_mean == (127.5,) * CHANNELS
    processor = ImageProcessor.from_pretrained(trained / "run")
    assert processor.reader.channels == CHANNELS
    processed = processor(trained / "images" / "0.npy")
    assert processed["pixel_values"].shape == (1, CHANNELS, 64, 96)
    assert model(processed["pixel_values"])["class_logits"].isfinite().all()
    with pytest.raises(ValueError, match=r"must be \[B, 4, H, W\], got shape \[1, 3, 64, 96\]"):
        model(processed["pixel_values"][:, :3])


def test_evaluation_and_prediction(trained: Path, tmp_path: Path) -> None:
    both = ["--checkpoint", trained / "run", "--device", "cpu"]
    assert not run("evaluate", *both, "--output", tmp_path / "scores")
    assert not run("predict", trained / "images", *both, "--out", tmp_path / "out")
    for file in (tmp_path / "out" / "0.png", tmp_path / "scores" / "predictions" / "0.png"):
        assert Image.open(file).mode == "RGB"


def test_predicting_on_rgb_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "rgb.png")
    arguments = ["--checkpoint", trained / "run", "--device", "cpu", "--out", tmp_path / "out"]
    assert run("predict", tmp_path / "rgb.png", *arguments) == 1
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "has 3 channels, which does" in printed


@pytest.mark.parametrize("kind", ["hf", "official"])
def test_no_other_format_takes_them(tmp_path: Path, kind: str) -> None:
    model = MaskFormer.from_config(
        "ade20k/r50", num_classes=2, pixel_mean=[1] * 4, pixel_std=[1] * 4
    )
    with pytest.raises(WeightsError, match=r"4 channels|this model has 4"):
        model.save_pretrained(tmp_path / "other", format=kind)  # type: ignore[arg-type]


def test_a_plain_folder_keeps_the_number(trained: Path, tmp_path: Path) -> None:
    model = MaskFormer.from_pretrained(trained / "run")
    model.save_pretrained(tmp_path / "model")
    assert MaskFormer.from_pretrained(tmp_path / "model").config == model.config
    assert ImageProcessor.from_pretrained(tmp_path / "model").reader.channels == CHANNELS
