"""`maskformer predict`: values of the recipe, tiles, names and formats of results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import Run, train_once
from helpers.label_folders import write_pair
from helpers.recipes import TINY
from PIL import Image


def save_noise(file: Path, width: int, height: int) -> Path:
    """A photo with something in it at every scale."""
    generator = np.random.default_rng(0)
    sizes = ((width, height), (width // 8, height // 8), (5, 4))
    layers = [
        Image.fromarray(generator.integers(0, 255, (h, w, 3), np.uint8)).resize((width, height))
        for w, h in sizes
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.blend(Image.blend(layers[0], layers[1], 0.5), layers[2], 0.5).save(file)
    return file


def label_map(out: Path, name: str = "photo") -> np.ndarray:
    return np.asarray(Image.open(out / "classes" / f"{name}.png"))


def test_values_replace_those_of_the_recipe(run: Run, trained: Path, tmp_path: Path) -> None:
    photo = save_noise(tmp_path / "photo.png", 96, 80)
    pictures = []
    every = ["eval.object_mask_threshold=0", "eval.overlap_threshold=0"]
    for name, value in (
        ("plain", "predict.opacity=0.6"),
        ("confident", "eval.object_mask_threshold=1"),
        ("faint", "predict.opacity=0"),
    ):
        out = tmp_path / name
        arguments = [*every, photo, value, "--checkpoint", trained, "--out", out]
        code, text, err = run("predict", *arguments)
        assert code == 0, err
        assert f"1 image predicted; the results are in {out}" in text
        pictures.append(np.asarray(Image.open(out / "photo.png")))
    plain, confident, faint = (
        json.loads((tmp_path / name / "panoptic.json").read_text())
        for name in ("plain", "confident", "faint")
    )
    assert plain["annotations"][0]["segments_info"]
    assert confident["annotations"][0]["segments_info"] == []
    assert plain["annotations"] == faint["annotations"]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["eval.object_mask_treshold=0.1"], "did you mean 'eval.object_mask_threshold'?"),
        (["predict.opacity=2"], "predict.opacity: Input should be less than or equal to 1, got 2"),
        (["predict.tile=8"], "predict.tile: Input should be greater than or equal to 32, got 8"),
        (
            ["model.decoder.queries=3"],
            "the checkpoint determines the model, so 'model.decoder.queries=3'",
        ),
        (["predict.tile=64", "--mode", "panoptic"], "expected mode 'semantic', got 'panoptic'"),
        (["predict.tile=64", "--mode", "instance"], "expected mode 'semantic', got 'instance'"),
        (["predict.tile=64", "--tta"], "cannot be combined"),
        (["data.test_side=64"], "data.test_side: unknown key; did you mean 'data.test_max_side'?"),
        (["opacity=0.3"], "opacity: unknown key"),
        (["train.lr=1"], "train.lr: no effect on predictions"),
        (["criterion.mask_weight=1"], "criterion.mask_weight: no effect on predictions"),
        (["data={seed: 1}"], "data.seed: no effect on predictions"),
        (["data.augmentation.crop=8"], "data.augmentation.crop: no effect on predictions"),
        (["eval.instances=true"], "eval.instances: no effect on predictions"),
    ],
)
def test_values_that_do_not_fit(
    run: Run, trained: Path, tmp_path: Path, values: list[str], said: str
) -> None:
    photo = save_noise(tmp_path / "photo.png", 96, 80)
    arguments = [photo, *values, "--checkpoint", trained, "--out", tmp_path / "out"]
    code, _, err = run("predict", *arguments)
    assert code == 1
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_no_folder(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    save_noise(tmp_path / "photo.png", 64, 64)
    out = tmp_path / "new" / "out"
    for images, options in (
        ([tmp_path / "broken.png"], []),
        ([tmp_path / "photo.png"], ["--checkpoint", tmp_path / "nowhere"]),
        ([tmp_path / "nowhere.png"], []),
        (["predict.opacity=0.5"], []),
    ):
        options = options or ["--checkpoint", trained]
        code, _, err = run("predict", *images, *options, "--out", out)
        assert code in (1, 2), err
        assert not (tmp_path / "new").exists()


def test_files_with_an_equals_sign_are_images(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_noise(tmp_path / "x=1.png", 64, 64)
    save_noise(tmp_path / "run.lr=2.png", 64, 64)
    monkeypatch.chdir(tmp_path)
    images = ["x=1.png", "run.lr=*.png"]
    code, text, err = run("predict", *images, "--checkpoint", trained, "--out", "out")
    assert code == 0, err
    assert "2 images predicted" in text


def test_which_result_came_from_which_file(run: Run, trained: Path, tmp_path: Path) -> None:
    files = [save_noise(tmp_path / name, 64, 64) for name in ("x/a.png", "y/a.jpg", "y/b.png")]
    out = tmp_path / "out"
    code, text, err = run("predict", *files, "--checkpoint", trained, "--out", out)
    assert code == 0, err
    assert json.loads((out / "files.json").read_text()) == [
        {"file": str(file), "name": name, "picture": f"{name}.png"}
        for file, name in zip(files, ("a", "a_2", "b"), strict=True)
    ]
    assert f"{files[1]}: its results are named a_2\n" in text
    assert f"{files[0]}:" not in text
    assert f"{files[2]}:" not in text


def test_an_image_that_fits_in_one_tile_is_predicted_whole(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    photo = save_noise(tmp_path / "photo.png", 150, 70)
    for name, value in (
        ("whole", "--mode=semantic"),
        ("tile", "predict.tile=150"),
        ("tiles", "predict.tile=64"),
    ):
        arguments = [photo, value, "data.test_short_side=64", "--checkpoint", trained]
        code, text, err = run("predict", *arguments, "--out", tmp_path / name)
        assert code == 0, err
        said = "photo.png: 150x70 is predicted in 6 tiles of 64x64"
        assert (said in text) == (name == "tiles")
    whole, tile, tiles = (label_map(tmp_path / name) for name in ("whole", "tile", "tiles"))
    assert np.array_equal(whole, tile)
    assert tiles.shape == whole.shape == (70, 150)


def test_it_is_said_that_details_are_lost(run: Run, trained: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_noise(tmp_path / "photos" / f"{name}.jpg", 300, 200)
    save_noise(tmp_path / "photos" / "small.jpg", 90, 80)
    arguments = ["predict", tmp_path / "photos", "data.test_short_side=40", "--checkpoint", trained]
    code, text, err = run(*arguments, "--out", tmp_path / "a", "--mode", "semantic")
    assert code == 0, err
    said = "one.jpg: 300x200 is shrunk to 60x40; predict.tile=40 keeps its details\n"
    assert said in text
    assert text.count("is shrunk") == 1  # once for a size
    _, text, _ = run(*arguments, "--out", tmp_path / "b", "--mode", "panoptic")
    assert "60x40; a larger data.test_short_side keeps more of its details\n" in text
    _, text, _ = run(*arguments, "--out", tmp_path / "c", "predict.tile=160")
    assert "one.jpg: 300x200 is predicted in 6 tiles of 160x160, each shrunk to 40x40\n" in text
    _, text, _ = run(*arguments, "--out", tmp_path / "d", "predict.tile=40")
    assert "is predicted in 70 tiles of 40x40\n" in text


def test_results_of_other_settings_are_named(run: Run, trained: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_noise(tmp_path / f"{name}.jpg", 90, 80)
    out = ["--checkpoint", trained, "--output", tmp_path / "out"]
    said = "holds results of another model, mode or recipe: files with the same names are replaced"
    assert said not in run("predict", tmp_path / "a.jpg", *out)[1]
    assert said not in run("predict", tmp_path / "a.jpg", *out)[1]
    assert said in run("predict", tmp_path / "b.jpg", *out, "predict.opacity=0")[1]
    assert said not in run("predict", tmp_path / "b.jpg", *out, "predict.opacity=0")[1]


@pytest.mark.parametrize(
    ("values", "suffix", "form"),
    [
        ([], "jpg", "JPEG"),
        (["predict.picture_format=webp"], "webp", "WEBP"),
        (["predict.picture_format=png"], "png", "PNG"),
    ],
)
def test_large_pictures_are_jpeg(
    run: Run, trained: Path, tmp_path: Path, values: list[str], suffix: str, form: str
) -> None:
    photo = save_noise(tmp_path / "photo.png", 2400, 1700)
    small = save_noise(tmp_path / "small.png", 64, 64)
    out = tmp_path / "out"
    more = ["data.test_short_side=64", "--mode", "semantic", "--checkpoint", trained]
    code, _, err = run("predict", photo, small, *values, *more, "--out", out)
    assert code == 0, err
    assert Image.open(out / f"photo.{suffix}").format == form
    assert json.loads((out / "files.json").read_text())[0]["picture"] == f"photo.{suffix}"
    assert label_map(out).shape == (1700, 2400)
    assert (out / f"small.{suffix if values else 'png'}").exists()


@pytest.fixture(scope="module")
def trained_on_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data is the folder beside it."""
    root = tmp_path_factory.mktemp("mine")
    for name in ("train/a", "train/b", "val/photo"):
        write_pair(root, name, np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 2)
    splits = {s: {"images": f"images/{s}", "labels": f"labels/{s}"} for s in ("train", "val")}
    data = {**TINY["data"], "format": "folder", "root": str(root), "classes": ["x", "y"], **splits}
    for key in ("image_size", "train_images", "val_images"):
        del data[key]
    return train_once(root, {**TINY, "data": data, "train": {**TINY["train"], "steps": 1}})


def test_classes_of_the_checkpoint_stay(run: Run, trained_on_files: Path, tmp_path: Path) -> None:
    photo = save_noise(tmp_path / "photo.png", 64, 64)
    options = ["--checkpoint", trained_on_files, "--out", tmp_path / "out"]
    for values in ("[y, x]", "[x, y, z]"):
        code, _, err = run("predict", photo, f"data.classes={values}", *options)
        assert code == 1
        assert "no effect on predictions" in err
        assert "data.classes: no effect on predictions" in err
    assert run("predict", photo, "data.classes=[x, y]", *options)[0] == 0


@pytest.mark.parametrize("out", ["labels/val", "labels", "labels/train", "images/train", "."])
def test_data_of_the_run_is_not_replaced(
    run: Run, trained_on_files: Path, tmp_path: Path, out: str
) -> None:
    root = trained_on_files.parent
    before = {file: file.read_bytes() for file in root.rglob("*.*") if file.is_file()}
    photo = save_noise(tmp_path / "photo.png", 64, 64)
    options = ["--checkpoint", trained_on_files, "--mode", "semantic"]
    code, _, err = run("predict", photo, *options, "--out", root / out)
    assert code == 1
    assert f"{root / out} cannot be the output folder: it is or contains" in err
    assert before == {file: file.read_bytes() for file in root.rglob("*.*") if file.is_file()}


@pytest.mark.parametrize(
    ("mode", "taken"),
    [
        ("semantic", "classes/photo.png"),
        ("semantic", "classes.json"),
        ("panoptic", "panoptic/photo.png"),
        ("panoptic", "panoptic.json"),
        ("instance", "instances.json"),
        ("instance", "classes.json"),
        ("instance", "photo.jpg"),
        ("instance", "files.json"),
    ],
)
def test_files_of_others_are_not_replaced(
    run: Run, trained: Path, tmp_path: Path, mode: str, taken: str
) -> None:
    photo = save_noise(tmp_path / "photo.png", 64, 64)
    out = tmp_path / "out"
    (out / taken).parent.mkdir(parents=True)
    (out / taken).write_text("mine")
    predict = ["predict", photo, "--checkpoint", trained, "--mode", mode, "--out", out]
    for more in ([], ["--skip-existing"]):
        code, _, err = run(*predict, *more)
        assert code == 1
        assert (
            f"{out / taken} already exists, and its folder has no record that maskformer predict"
            in err
        )
        assert "choose another --output, or remove it" in err
    assert [file for file in out.rglob("*") if file.is_file()] == [out / taken]
    assert (out / taken).read_text() == "mine"
    (out / taken).rename(out / "notes.txt")
    assert run(*predict)[0] == 0


def test_results_of_an_earlier_call_are_replaced(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a call in between ended before its first result."""
    photo = save_noise(tmp_path / "photo.png", 64, 64)
    predict = ["predict", photo, "--checkpoint", trained, "--out", tmp_path / "out"]
    assert run(*predict)[0] == 0

    def refuse(*_: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("maskformer.output.picture_writer.save_picture", refuse)
        assert "no room" in run(*predict, "predict.opacity=0")[2]
    (tmp_path / "out" / "photo.png").write_bytes(b"old")
    code, _, err = run(*predict, "--skip-existing")
    assert code == 0, err
    assert Image.open(tmp_path / "out" / "photo.png").size[0] >= 64
