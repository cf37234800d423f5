from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_format import check_panoptic, ground_truth_as_panoptic
from helpers.command_line import Run
from helpers.recipes import TINY, write_recipe
from PIL import Image

from maskformer.cli import main
from maskformer.cli.run import INTERNAL_ERROR
from maskformer.data import build_dataset
from maskformer.data.label_reader import read_segment_ids
from maskformer.errors import ConfigError
from maskformer.inference.prediction import Prediction
from maskformer.modeling.maskformer import MaskFormer
from maskformer.output.result_writer import ResultWriter
from maskformer.training.checkpoints.contents import load_info, load_recipe, resolve_checkpoint
from mfkernels import backend


def test_evaluate_repeats_the_figures_of_training(run: Run, trained: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "evaluate", "--checkpoint", trained, "--output", tmp_path, "--device", "cpu"
    )
    assert code == 0, err
    assert "miou" in out
    assert "(step_0000002)" in out  # which checkpoint of the run it was
    assert "triangle" in out  # the table by class
    again = json.loads((tmp_path / "metrics.json").read_text())
    before = json.loads((trained / "metrics.json").read_text())
    assert again["miou"] == pytest.approx(before["miou"])
    assert len(again["per_class"]["iou"]) == 9


def test_evaluate_removes_what_a_killed_call_left(run: Run, trained: Path, tmp_path: Path) -> None:
    """Half written, in inner folders too, or of a process whose results have no names yet."""
    inner = tmp_path / "classes" / "city"
    inner.mkdir(parents=True)
    left = [tmp_path / ".01234567.partial", inner / ".89abcdef.partial"]
    left.append(tmp_path / "classes" / ".0001-00000003.png")
    for file in left:
        file.write_bytes(b"half")
    own = tmp_path / "classes" / "my.partial"
    own.write_bytes(b"the user's")
    code, _, err = run("evaluate", "--checkpoint", trained, "--output", tmp_path, "--device", "cpu")
    assert code == 0, err
    assert not any(file.exists() for file in left)
    assert own.read_bytes() == b"the user's"


@pytest.mark.parametrize(
    ("taken", "options"),
    [
        ("metrics.json", []),
        ("confusion_matrix.png", []),
        ("predictions/photo.png", ["eval.pictures=1"]),
        ("panoptic.json", []),
        ("panoptic/photo.png", []),
        ("classes/photo.png", ["--save-maps"]),
        ("instances.json", ["eval.instances=true"]),
        ("classes.json", ["eval.instances=true"]),
    ],
)
def test_evaluate_replaces_its_own_files_only(
    run: Run, trained: Path, tmp_path: Path, taken: str, options: list[str]
) -> None:
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text("mine")
    evaluate = ["evaluate", "--checkpoint", trained, "--output", tmp_path, *options]
    code, _, err = run(*evaluate)
    assert code == 1
    assert f"{tmp_path} holds {taken.rpartition('/')[0]}" in err
    assert "choose another --output" in err
    assert [file.read_text() for file in tmp_path.rglob("*") if file.is_file()] == ["mine"]
    (tmp_path / taken).rename(tmp_path / "mine")
    for _ in range(2):
        code, _, err = run(*evaluate)
        assert code == 0, err


def test_an_output_is_refused_before_the_model_is_read(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, **__: object) -> None:
        pytest.fail("the model was read")

    monkeypatch.setattr(MaskFormer, "from_pretrained", slow)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    (tmp_path / "metrics.json").write_text("mine")
    evaluate = ["evaluate", "--checkpoint", trained, "--output"]
    predict = ["predict", photo, "--checkpoint", trained, "--output"]
    for arguments, message in (
        ([*evaluate, tmp_path], "holds metrics.json"),
        ([*evaluate, photo], "photo.png is a file"),
        ([*evaluate, trained], "contains the checkpoint"),
        ([*evaluate, tmp_path / "x", "--tta", "eval.semantic=false"], "eval.semantic is off"),
        ([*predict, photo], "photo.png is a file"),
        ([*predict, tmp_path], "photo.png is one of the images"),
        ([*predict, trained], "contains the checkpoint"),
    ):
        code, _, err = run(*arguments)
        assert code == 1
        assert message in err


def test_evaluate_does_not_pretend_to_change_the_model(run: Run, trained: Path) -> None:
    code, _, err = run("evaluate", "--checkpoint", trained, "model.num_classes=12")
    assert code == 1
    assert "'model.num_classes=12' cannot be applied" in err


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("train.precision=bf16", "train.precision: no effect"),
        ("train.lr=1", "train.lr: no effect"),
        ("criterion.mask_weight=1", "criterion.mask_weight: no effect"),
        ("data.augmentation.crop=8", "data.augmentation.crop: no effect"),
        (
            "data={test_short_side: 64, augmentation: {crop: 8}}",
            "error: data.augmentation.crop: no effect",
        ),
        ("model={num_classes: 12}", "model.num_classes: no effect"),
        ("train", "an override must be key=value"),
    ],
)
def test_evaluate_refuses_what_it_does_not_follow(
    run: Run, trained: Path, value: str, said: str
) -> None:
    code, _, err = run("evaluate", "--checkpoint", trained, value)
    assert code == 1
    assert said in err


def test_evaluate_follows_data_and_what_is_measured(run: Run, trained: Path) -> None:
    values = ["data.val_images=2", "data.test_short_side=48", "eval.batch_size=1"]
    values += ["eval.panoptic=false", "train.best_metric=miou", "train.workers=1"]
    code, out, err = run("evaluate", "--checkpoint", trained, *values)
    assert code == 0, err
    assert "miou" in out


def test_predict_without_any_readable_image_fails(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    arguments = ["--checkpoint", trained, "--out", tmp_path / "out"]
    code, _, err = run("predict", tmp_path / "text.png", *arguments)
    assert code == 1
    assert "error: none of 1 images could be read" in err


def test_a_longer_run_resumes_with_its_own_recipe(run: Run, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for item in trained.iterdir():
        item.rename(copy / item.name)
    try:
        code, out, err = run("train", "--cpu", "--resume", "--output", copy, "train.steps=3")
        assert code == 0, err
        assert "after 3 steps" in out
    finally:
        for item in copy.iterdir():
            item.rename(trained / item.name)


def test_resuming_takes_the_recipe_of_the_last_checkpoint(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy, symlinks=True)
    code, _, err = run("train", "--cpu", "--resume", "--output", copy, "train.steps=3")
    assert code == 0, err
    steps = copy / "checkpoints"
    (steps / "best").unlink()
    shutil.copytree(trained / "checkpoints" / "best", steps / "step_0000002", dirs_exist_ok=True)
    (steps / "best").symlink_to("step_0000002")  # the best one ended at step 2
    code, out, err = run("train", "--cpu", "--resume", "--output", copy)
    assert code == 0, err
    assert "after 3 steps" in out
    assert "steps: 3" in (copy / "recipe.yaml").read_text()


def test_a_resumed_run_does_without_the_weights_it_started_from(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    """Neither they nor, where the recipe has none, a model section are needed any more."""
    source, output = tmp_path / "source", tmp_path / "tuned"
    shutil.copytree(trained, source, symlinks=True)
    recipe = write_recipe(tmp_path, {key: TINY[key] for key in ("data", "train", "eval")})
    train = ["train", "--cpu", "--config", recipe, "--output", output]
    start = [*train, "--weights", source, "--auto-resume", "train.steps=1"]
    code, out, err = run(*start)
    assert code == 0, err
    code, out, err = run(*start[:-1], "train.steps=2")
    assert code == 0, err
    assert "after 2 steps" in out
    shutil.rmtree(source)
    code, out, err = run(*start[:-1], "train.steps=3")
    assert code == 0, err
    assert "after 3 steps" in out
    assert str(source) not in out
    code, out, err = run(*train, "--resume", "train.steps=4")
    assert code == 0, err
    assert "after 4 steps" in out


def test_the_weights_of_a_run_without_a_checkpoint_are_no_leftovers(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    """All that a full disk left is not removed by a command that is started again."""
    output = tmp_path / "run"
    shutil.copytree(trained, output, symlinks=True)
    (output / "checkpoints" / "best").resolve().rename(output / "weights_step_0000002")
    shutil.rmtree(output / "checkpoints")
    before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    train = ["train", "--cpu", "--config", write_recipe(tmp_path), "--output", output]
    code, _, err = run(*train, "--auto-resume")
    assert code == 1
    assert f"{output} holds no checkpoint to resume from, only weights_step_0000002" in err
    assert "--weights" in err
    assert {file: file.read_bytes() for file in output.rglob("*") if file.is_file()} == before
    code, _, err = run(*train, "--overwrite", "train.steps=1")
    assert code == 0, err
    assert not (output / "weights_step_0000002").exists()


def test_a_copy_whose_steps_are_lost_is_not_replaced(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(trained, output)  # links become folders
    shutil.rmtree(output / "checkpoints" / "step_0000002")
    train = ["train", "--cpu", "--config", write_recipe(tmp_path), "--output", output]
    code, out, err = run(*train, "--auto-resume", "train.steps=3")
    assert code == 0, err
    assert "after 3 steps" in out


def test_nothing_is_overwritten_by_a_prediction(run: Run, trained: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    before = photo.read_bytes()
    code, _, err = run("predict", photo, "--checkpoint", trained, "--out", tmp_path)
    assert code == 1
    assert "photo.png is one of the images" in err
    assert photo.read_bytes() == before
    code, _, err = run("predict", photo, "--checkpoint", trained, "--out", photo)
    assert code == 1
    assert "photo.png is a file" in err


def test_outputs_keep_off_what_is_read(run: Run, trained: Path, tmp_path: Path) -> None:
    """No command writes into a folder that is or holds its images or its checkpoint."""
    copy = tmp_path / "run"
    shutil.copytree(trained, copy, symlinks=True)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.png")  # not predicted, but the user's
    (tmp_path / "way").symlink_to("photos")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    photo, step = tmp_path / "photos" / "a.jpg", copy / "checkpoints" / "step_0000002"
    for arguments in (
        ["predict", photo, "--checkpoint", trained, "--out", tmp_path / "photos"],
        ["predict", photo, "--checkpoint", trained, "--out", tmp_path / "way"],
        ["predict", photo, "--checkpoint", trained, "--out", tmp_path],
        ["predict", photo, "--checkpoint", copy, "--out", copy],
        ["evaluate", "--checkpoint", copy, "--output", copy],
        ["evaluate", "--checkpoint", copy, "--output", step],
        ["convert", copy, copy, "--to", "native"],
        ["convert", step, step, "--to", "native"],
        ["convert", step, tmp_path, "--to", "native"],
        ["convert", trained, copy, "--to", "native"],
    ):
        code, _, err = run(*arguments)
        assert code == 1, arguments
        assert "choose another" in err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_brackets_in_names_are_no_markup(run: Run, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[b]photos[/red]"
    (folder / "folder.png").mkdir(parents=True)  # not an image either
    Image.new("CMYK", (1, 1)).save(folder / "tiny.jpg")
    Image.new("LA", (300, 2)).save(folder / "wide.png")
    (folder / "broken[i].png").write_bytes(b"")
    code, text, err = run("predict", folder, "--checkpoint", trained, "--out", folder / "out")
    assert code == 1, err
    assert f"image file {folder}/broken[i].png cannot be read" in text
    assert f"2 images predicted; the results are in {folder}/out, and files.json" in text
    assert "1 image could not be read" in text


@pytest.mark.parametrize("panoptic", [True, False])
def test_predict_writes_pictures_and_maps(
    run: Run, trained: Path, tmp_path: Path, panoptic: bool
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
    Image.fromarray(noise).save(photos / "a.png")
    Image.fromarray(noise[:64, :64]).save(photos / "a.jpg")
    (photos / "broken.jpg").write_bytes(b"not an image")
    out = tmp_path / "out"
    kind = "--mode=panoptic" if panoptic else "--mode=semantic"
    code, text, _ = run("predict", photos, "--checkpoint", trained, "--out", out, kind)
    assert code == 1  # one image could not be read
    assert "broken.jpg" in text
    assert "2 images" in text
    names = {path.name for path in out.iterdir()}
    if panoptic:
        assert names == {
            ".predictions.jsonl",
            "a.png",
            "a_2.png",
            "files.json",
            "panoptic",
            "panoptic.json",
        }
        content = json.loads((out / "panoptic.json").read_text())
        assert [entry["image_id"] for entry in content["annotations"]] == ["a", "a_2"]
        ids = read_segment_ids(out / "panoptic" / "a_2.png")
        present = set(np.unique(ids)) - {0}
        assert present == {s["id"] for s in content["annotations"][1]["segments_info"]}
    else:
        assert names == {
            ".predictions.jsonl",
            "a.png",
            "a_2.png",
            "files.json",
            "classes",
            "classes.json",
        }
        classes = np.asarray(Image.open(out / "classes" / "a_2.png"))
        assert classes.shape == (70, 90)
        assert classes.max() < 9


def test_predict_writes_instances(run: Run, trained: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 70), (200, 30, 30)).save(tmp_path / "000042.jpg")
    out = tmp_path / "out"
    code, _, err = run(
        "predict", tmp_path / "*.jpg", "--checkpoint", trained, "--out", out, "--mode", "instance"
    )
    assert code == 0, err
    assert {path.name for path in out.iterdir()} == {
        ".predictions.jsonl",
        "000042.png",
        "classes.json",
        "files.json",
        "instances.json",
    }
    entries = json.loads((out / "instances.json").read_text())
    assert {entry["image_id"] for entry in entries} == {42}
    assert all(entry["segmentation"]["size"] == [70, 90] for entry in entries)


def test_views_change_the_label_maps(run: Run, trained: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    for name, option in (("plain", "--mode=semantic"), ("views", "--tta")):
        code, _, err = run(
            "predict", tmp_path / "a.png", "--checkpoint", trained, "--out", tmp_path / name, option
        )
        assert code == 0, err
        assert (tmp_path / name / "classes" / "a.png").is_file()


def shapes_on_disk(trained: Path, folder: Path) -> str:
    """The recipe's validation images as files; returns the start of a data section for them."""
    recipe = load_recipe(resolve_checkpoint(trained), [])
    data = build_dataset(recipe.data, "val")
    (folder / "images").mkdir()
    for sample in data:
        picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        picture.save(folder / "images" / f"{sample.name}.jpg", quality=95)
    return f"root: {folder}, test_short_side: null"


def test_panoptic_results_read_as_ground_truth_score_one(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    """What `evaluate --output` writes is a valid data set, and the prediction itself."""
    every = ["eval.object_mask_threshold=0", "eval.overlap_threshold=0"]
    start = shapes_on_disk(trained, tmp_path)
    with ResultWriter(tmp_path / "truth", load_info(resolve_checkpoint(trained))) as truth:
        for sample in build_dataset(load_recipe(resolve_checkpoint(trained), []).data, "val"):
            ids, segments = ground_truth_as_panoptic(sample)
            listed = [{**segment, "score": 1.0} for segment in segments]
            truth.add(sample.name, sample.name, Prediction(panoptic=(ids, listed)))
    for ground_truth, out in (("truth", "first"), ("first", "second")):
        split = (
            f"{{images: images, panoptic: {ground_truth}/panoptic, "
            f"annotations: {ground_truth}/panoptic.json}}"
        )
        recipe = tmp_path / f"{out}.yaml"
        recipe.write_text(
            f"data: {{format: coco_panoptic, {start}, train: {split}, val: {split}}}\n"
            "eval: {panoptic: true, batch_size: 3}\n"
        )
        code, _, err = run(
            "evaluate", "--checkpoint", trained, "--config", recipe, "--output", tmp_path / out,
            *every,
        )  # fmt: skip
        assert code == 0, err
        entries = check_panoptic(tmp_path / out / "panoptic.json", tmp_path / out / "panoptic")
        assert len(entries) == 4
        assert any(entry["segments_info"] for entry in entries)
    metrics = json.loads((tmp_path / "second" / "metrics.json").read_text())
    assert metrics["pq"] == 1
    assert json.loads((tmp_path / "first" / "metrics.json").read_text())["pq"] < 1


def test_label_maps_read_as_labels_score_one(run: Run, trained: Path, tmp_path: Path) -> None:
    start = shapes_on_disk(trained, tmp_path)
    names = list(load_info(resolve_checkpoint(trained)).classes)
    for labels, out in (("first/classes", "second"), ("blank", "first"))[::-1]:
        split = f"{{images: images, labels: {labels}}}"
        recipe = tmp_path / f"{out}.yaml"
        recipe.write_text(
            f"data: {{format: folder, {start}, train: {split}, val: {split}, classes: {names}}}"
        )
        if labels == "blank":
            (tmp_path / "blank").mkdir()
            for image in (tmp_path / "images").iterdir():
                Image.new("L", (64, 64)).save(tmp_path / "blank" / f"{image.stem}.png")
        code, _, err = run(
            "evaluate", "--checkpoint", trained, "--config", recipe, "--output", tmp_path / out,
            "--save-maps", "--tta",
        )  # fmt: skip
        assert code == 0, err
    metrics = json.loads((tmp_path / "second" / "metrics.json").read_text())
    assert metrics["miou"] == 1


def test_info_lists_recipes_and_sizes(run: Run) -> None:
    code, out, _ = run("info")
    assert code == 0
    assert {"quickstart", "camvid", "ade20k/r50"} <= set(out.split())
    code, out, _ = run("info", "ade20k/r50")
    assert code == 0
    assert "41,254,743" in out  # parameters, paper table 1
    code, out, _ = run("info", "quickstart", "--size", "96x96")
    assert code == 0
    assert "backbone" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "--config is needed; recipes: "),
        (["train", "--resume"], "--resume needs the run"),
        (["train", "--config", "x", "--resume", "--overwrite"], "choose one"),
        (["train", "--resume", "--weights", "x", "--output", "y"], "choose one"),
        (["train", "--config", "quikstart"], "did you mean 'quickstart'?"),
        (["train", "--config", "quickstart", "train.stepz=1"], "did you mean 'train.steps'?"),
        (["train", "--config", "camvid", "data.root=nowhere"], "nowhere"),
        *(
            (["info", "quickstart", "--size", size], f"both from 32 to 99999, got '{size}'")
            for size in ("0x0", "31x64", "64", "64x", "64x64x", "100000x64", "-64x64", "6²x64")
        ),
        (["evaluate", "--checkpoint", "nowhere"], "no checkpoint at nowhere"),
        (["predict", "no*.png", "--checkpoint", "RUN", "--out", "x"], "no image at 'no*.png'"),
        (["evaluate", "--checkpoint", "RUN", "--device", "fpga"], "--device fpga"),
        (["evaluate", "--checkpoint", "RUN", "--device", "meta"], "--device meta cannot be used"),
        (["evaluate", "--checkpoint", "RUN", "--save-maps"], "--output FOLDER"),
        (
            ["evaluate", "--checkpoint", "RUN", "--tta", "eval.semantic=false"],
            "eval.semantic is off",
        ),
        (
            ["evaluate", "--checkpoint", "RUN", "eval.semantic=false", "eval.panoptic=false"],
            "expected at least one of them",
        ),
        (["evaluate", "--checkpoint", "RUN", "eval.tta.scales=[]"], "eval.tta.scales"),
        (
            ["predict", "RUN/metrics.json", "--checkpoint", "RUN", "--out", "x", "--mode", "class"],
            "'semantic', 'panoptic', 'instance'",
        ),
        (
            ["predict", "RUN", "--checkpoint", "RUN", "--out", "x", "--tta", "--mode", "panoptic"],
            "expected mode 'semantic', got 'panoptic'",
        ),
        (["evaluate", "--checkpoint", "RUN", "--config", "camvid", "data.root=x"], "x"),
        (["info", "quickstart", "--size", "96"], "HEIGHTxWIDTH"),
        (["train", "--config", "quickstart", "--output", "RUN"], "--overwrite"),
        (["train", "--config", "quickstart", "--output", "RUN/recipe.yaml/x"], "is a file"),
        (["train", "--resume", "--output", "nowhere"], "nothing to resume: nowhere/checkpoints"),
        (["evaluate", "--checkpoint", "RUN", "--output", "RUN/recipe.yaml"], "is a file"),
        (
            ["train", "--config", "quickstart", "--cpu", "train.precision=fp16", "--output", "x"],
            "fp16, which needs a GPU",
        ),
    ],
)
def test_mistakes_end_in_one_clear_line(
    run: Run, trained: Path, arguments: list[str], message: str
) -> None:
    code, _, err = run(*[a.replace("RUN", str(trained)) for a in arguments])
    assert code != 0
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_an_interruption_outside_of_training_is_said(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("maskformer.training.build_data.check_splits", interrupt)
    code, _, err = run("train", "--cpu", "--config", "quickstart", "--output", "nowhere")
    assert code == 130
    assert err.strip() == "interrupted; nothing was left to save"


def test_too_little_memory_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to\nallocate 9")

    monkeypatch.setattr("maskformer.training.build_data.check_splits", fail)
    code, _, err = run("train", "--cpu", "--config", "quickstart", "--output", "nowhere")
    assert code == 1
    assert "out of memory; lower train.batch_size" in err
    assert "allocate 9" not in err


@pytest.mark.parametrize("bug", [ValueError, KeyError, RuntimeError, TypeError])
def test_a_bug_is_no_mistake_of_the_user(
    run: Run, monkeypatch: pytest.MonkeyPatch, bug: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise bug("shapes do not fit")

    monkeypatch.setattr("maskformer.training.build_data.check_splits", fail)
    code, _, err = run("train", "--cpu", "--config", "quickstart", "--output", "nowhere")
    assert code == INTERNAL_ERROR
    assert "Traceback" in err
    assert "shapes do not fit" in err
    assert "internal error: this is a bug" in err


def test_a_backend_that_cannot_serve_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFKERNELS_BACKEND", "fast")

    def ask(*_: object, **__: object) -> None:
        backend.requested()

    monkeypatch.setattr("maskformer.training.build_data.check_splits", ask)
    code, _, err = run("train", "--cpu", "--config", "quickstart", "--output", "nowhere")
    assert code == 1
    assert "error: MFKERNELS_BACKEND is 'fast', expected one of" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--checkpoint", "a\nb"],
        ["evaluate", "--checkpoint=a\nb"],
        ["evaluate", "--checkpoint", "a\nb/c.pkl"],
        ["predict", "a\nb", "--checkpoint", "RUN", "--out", "x"],
        ["convert", "a\nb", "x", "--to", "hf"],
        ["train", "--resume", "--output", "a\nb"],
        ["init", "a\nb"],
    ],
)
def test_a_path_with_a_line_end_stays_on_one_line(
    run: Run, trained: Path, arguments: list[str]
) -> None:
    code, _, err = run(*[text.replace("RUN", str(trained)) for text in arguments])
    assert code == 1
    assert err.count("\n") == 1
    assert "a\\x0ab" in err or "a\\nb" in err


def test_a_file_that_cannot_be_written_is_named_as_asked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the temporary name under which it is written."""
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.new("L", (40, 40), 1).save(tmp_path / "data" / folder / "a.png")

    def refuse(file: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(file))

    monkeypatch.setattr("maskformer.system.writing.sync", refuse)
    code, _, err = run("init", tmp_path / "data", "--output", tmp_path / "mine.yaml")
    assert code == 1
    assert err.endswith(f"Read-only file system: '{tmp_path / 'mine.yaml'}'\n")


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["maskformer", "--traceback", "train", "--config", "quikstart"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(ConfigError):
        main()


def test_a_damaged_checkpoint_is_named(run: Run, trained: Path, tmp_path: Path) -> None:
    source = (trained / "checkpoints" / "best").resolve()
    for name in ("config.json", "recipe.yaml", "dataset.json", "model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    code, _, err = run("evaluate", "--checkpoint", tmp_path)
    assert code == 1
    assert "model.safetensors" in err
    (tmp_path / "dataset.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    code, _, err = run("predict", tmp_path / "config.json", "--checkpoint", tmp_path, "--out", "x")
    assert code == 1
    assert "dataset.json" in err
    (tmp_path / "recipe.yaml").unlink()
    code, _, err = run("evaluate", "--checkpoint", tmp_path)
    assert code == 1
    assert "--config" in err


def test_evaluating_on_other_classes_is_refused(run: Run, trained: Path, tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "labels" / "a.png")
    split = "{images: images, labels: labels}"
    recipe = tmp_path / "folder.yaml"
    recipe.write_text(
        f"data: {{format: folder, root: {tmp_path}, train: {split}, val: {split}, classes: [one]}}"
    )
    code, _, err = run("evaluate", "--checkpoint", trained, "--config", recipe)
    assert code == 1
    assert "9 classes" in err


def test_evaluating_on_reordered_classes_is_refused(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    start = shapes_on_disk(trained, tmp_path)
    (tmp_path / "labels").mkdir()
    for image in (tmp_path / "images").iterdir():
        Image.new("L", (64, 64)).save(tmp_path / "labels" / f"{image.stem}.png")
    names = list(load_info(resolve_checkpoint(trained)).classes)
    split = "{images: images, labels: labels}"
    recipe = tmp_path / "folder.yaml"
    for given, code, said in (
        (names[::-1], 1, f"class 0 is '{names[0]}' there and '{names[-1]}' in the data, and 7"),
        ([*names[:-1], "renamed"], 0, f"class 8 is '{names[-1]}' there and 'renamed' in the data"),
    ):
        recipe.write_text(
            f"data: {{format: folder, {start}, train: {split}, val: {split}, classes: {given}}}"
        )
        exit_code, out, err = run("evaluate", "--checkpoint", trained, "--config", recipe)
        assert exit_code == code, err
        assert said in " ".join((out + err).split())
