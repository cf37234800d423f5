"""Training from weights, checkpoints of all forms, and what can be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from helpers.command_line import Run
from helpers.recipes import TINY, write_recipe
from PIL import Image

from maskformer.modeling.maskformer import MaskFormer
from maskformer.training.checkpoints.contents import resolve_checkpoint


@pytest.fixture
def small_classes(tmp_path: Path) -> dict[str, Any]:
    """A recipe of data only, with three classes."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64), (index * 80, 9, 9)).save(tmp_path / f"images/{index}.jpg")
        Image.new("L", (64, 64), index).save(tmp_path / f"labels/{index}.png")
    split = {"images": "images", "labels": "labels"}
    data = {"format": "folder", "root": str(tmp_path), "train": split, "val": split}
    augmentation = TINY["data"]["augmentation"]
    data |= {"classes": ["a", "b", "c"], "augmentation": augmentation, "test_short_side": None}
    return {"data": data, "train": {**TINY["train"], "steps": 1}, "eval": {"pictures": 0}}


def recipe_of(run_folder: Path) -> dict[str, Any]:
    return yaml.safe_load((run_folder / "recipe.yaml").read_text())


@pytest.mark.parametrize("model", [None, {"num_classes": 3}])
def test_the_weights_bring_the_architecture(
    run: Run, trained: Path, tmp_path: Path, small_classes: dict[str, Any], model: Any
) -> None:
    recipe = write_recipe(tmp_path, small_classes | ({"model": model} if model else {}))
    arguments = ["--config", recipe, "--weights", trained, "--output", tmp_path / "run", "--cpu"]
    code, out, err = run("train", *arguments, "model.decoder.dropout=0")
    assert code == 0, err
    source = resolve_checkpoint(trained)
    assert f"class head is new (9 -> 3 classes); all else comes from {source}" in out
    assert "of another shape" not in out + err
    before, after = recipe_of(source)["model"], recipe_of(tmp_path / "run")["model"]
    assert after["decoder"] == {**before["decoder"], "dropout": 0}
    assert after["pixel_decoder"] == before["pixel_decoder"]
    assert after["num_classes"] == 3


def test_a_model_section_of_a_recipe_counts(
    run: Run, trained: Path, tmp_path: Path, small_classes: dict[str, Any]
) -> None:
    decoder = {**TINY["model"]["decoder"], "queries": 5}
    recipe = write_recipe(
        tmp_path, small_classes | {"model": {**TINY["model"], "decoder": decoder}}
    )
    arguments = ["--config", recipe, "--weights", trained, "--output", tmp_path / "run", "--cpu"]
    code, out, err = run("train", *arguments)
    assert code == 0, err
    assert recipe_of(tmp_path / "run")["model"]["decoder"]["queries"] == 5
    assert "decoder.query_embed.weight [8, 16], expected [5, 16]" in out


def test_a_model_section_of_another_architecture(
    run: Run, trained: Path, tmp_path: Path, small_classes: dict[str, Any]
) -> None:
    model = {**TINY["model"], "backbone": {"name": "resnet18", "pretrained": False}}
    recipe = write_recipe(tmp_path, small_classes | {"model": model})
    arguments = ["--config", recipe, "--weights", trained, "--output", tmp_path / "run", "--cpu"]
    code, _, err = run("train", *arguments)
    assert code == 1
    assert "does not fit the model" in err
    assert "remove it, and that of the weights is used (base: _small has" in err
    assert "strict=False" not in err
    code, _, err = run("train", "--resume", "--output", trained, "--cpu", "model.decoder.layers=3")
    assert code == 1
    assert "from the recipe.yaml in the run folder" in err


def test_weights_alone_bring_the_whole_recipe(run: Run, trained: Path, tmp_path: Path) -> None:
    code, _, err = run("train", "--weights", trained, "--cpu")
    assert code == 2
    assert "needs the run folder: --output" in " ".join(err.split())
    arguments = ["--weights", trained, "--output", tmp_path / "run", "--cpu", "train.steps=1"]
    code, out, err = run("train", *arguments)
    assert code == 0, err
    assert "anew" not in out
    before, after = recipe_of(resolve_checkpoint(trained)), recipe_of(tmp_path / "run")
    assert after["train"].pop("steps") == 1
    assert before["train"].pop("steps") == 2
    assert after == before


def test_the_weight_file_of_a_folder_is_that_folder(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(photo)
    file = resolve_checkpoint(trained) / "model.safetensors"
    assert resolve_checkpoint(file) == file.parent
    code, _, err = run("predict", photo, "--checkpoint", file, "--out", tmp_path / "out")
    assert code == 0, err
    MaskFormer.from_pretrained(file)


def test_hub_ids_are_checkpoints(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MaskFormer.from_pretrained(trained).save_pretrained(tmp_path / "snapshot")
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(photo)

    def download(repo: str, **_: object) -> str:
        assert repo == "someone/maskformer"
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    given = ["--checkpoint", "someone/maskformer"]
    code, _, err = run("predict", photo, "data.test_short_side=64", *given, "--out", tmp_path / "o")
    assert code == 0, err
    recipe = write_recipe(tmp_path, {**TINY, "train": {**TINY["train"], "steps": 1}})
    code, _, err = run("evaluate", *given, "--config", recipe, "--device", "cpu")
    assert code == 0, err
    output = ["--output", tmp_path / "run", "--cpu"]
    code, _, err = run("train", "--config", recipe, "--weights", "someone/maskformer", *output)
    assert code == 0, err


def test_an_unreachable_hub_is_named(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    code, _, err = run("evaluate", "--checkpoint", "runs/mistyped")
    assert code == 1
    assert (
        "'runs/mistyped' is not a local folder, and downloading it from the Hugging Face hub failed"
        in err
    )
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(trained)
    _, _, err = run("evaluate", "--checkpoint", "runs/mistyped")
    assert (
        "not a local folder (the folder runs holds tiny, but no mistyped), and downloading" in err
    )
    _, _, err = run("evaluate", "--checkpoint", "tiny")
    assert "no checkpoint at tiny; did you mean runs/tiny?: expected a run folder" in err
    _, _, err = run("evaluate", "--checkpoint", "runs/tiny/checkpoints/x")
    assert "no checkpoint at runs/tiny/checkpoints/x (the folder runs/tiny/checkpoints holds" in err


def test_missing_imagenet_weights_end_it_before_data_is_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    given = ["--config", "camvid", "data.root=nowhere", "model.backbone.pretrained=true", "--cpu"]
    code, _, err = run("train", *given, "--output", tmp_path / "run")
    assert code == 1
    assert "hub cannot be reached: no route to host" in err
    assert "model.backbone.weights=FILE" in err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_a_newer_version_is_named(run: Run, trained: Path, tmp_path: Path) -> None:
    MaskFormer.from_pretrained(trained).save_pretrained(tmp_path / "newer")
    recipe = (resolve_checkpoint(trained) / "recipe.yaml").read_text()
    mark = recipe.splitlines()[0]
    assert mark.startswith("# maskformer 0.")
    file = tmp_path / "newer" / "recipe.yaml"
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    predict = ["predict", tmp_path / "a.png", "--out", tmp_path / "out"]
    for text, writer in (
        (recipe.replace(mark, "# maskformer 9.1"), "maskformer 9.1"),
        (recipe.replace(f"{mark}\n", ""), "an unknown version"),
    ):
        file.write_text(f"{text}\nema: {{decay: 0.9}}\n")
        for command in (predict, ["evaluate"]):
            code, _, err = run(*command, "--checkpoint", tmp_path / "newer")
            assert code == 1
            assert f"{file} does not fit maskformer 0." in err
            assert f"; it was written by {writer}: config: ema: unknown key" in err


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            "camvid",
            "native.\nNot as hf: transformers' MaskFormer cannot express this model: the norms",
        ),
        ("ade20k/r50", "native, hf, official.\n"),
        ("ade20k/r101c", "native, official.\nNot as hf: "),
    ],
)
def test_what_can_be_exported_is_known_before_training(run: Run, recipe: str, said: str) -> None:
    code, out, err = run("info", recipe, "--size", "64x64")
    assert code == 0, err
    assert f"maskformer convert can write this model as {said}" in out
