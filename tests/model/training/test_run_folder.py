"""Whose a run folder is, who works in it, and what is removed from it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.label_folders import folder_config
from helpers.recipes import TINY, tiny_recipe
from helpers.training import build_trainer
from PIL import Image

from maskformer import MaskFormer
from maskformer.config.load import parse_config
from maskformer.errors import CheckpointError, DiskFullError, OutputError, RunInUseError
from maskformer.output.protected_inputs import check_output_beside_data
from maskformer.system.folder_lock import LOCK, lock_folder
from maskformer.training.checkpoints import writing as checkpoints
from maskformer.training.checkpoints.contents import resolve_checkpoint
from maskformer.training.run_folder import MARKER, is_run
from maskformer.training.trainer import Trainer
from maskformer.weights.locate import BEST, LAST, find_checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    build_trainer(tiny_recipe(steps=1), run, cpu=True).fit()
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def train(run: Path, steps: int = 1, **options: Any) -> Trainer:
    trainer = build_trainer(tiny_recipe(steps=steps), run, cpu=True, **options)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "mine", ["recipe.yaml", "metrics.json", "checkpoints/own.pth", "predictions/own.png"]
)
def test_files_that_are_no_runs_are_in_the_way(tmp_path: Path, mine: str, overwrite: bool) -> None:
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    with pytest.raises(FileExistsError, match=f"holds {mine.partition('/')[0]}.*not a run"):
        build_trainer(tiny_recipe(), tmp_path, overwrite=overwrite, cpu=True)
    assert (tmp_path / mine).read_text() == "mine"


def test_a_folder_with_other_files_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("new", "photos"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".hidden").touch()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).touch()
    for folder, warned in (("new", False), ("photos", True)):
        build_trainer(tiny_recipe(), tmp_path / folder, cpu=True)
        text = f"{folder} is not a run and holds 2 other names (a.jpg, b.jpg): the run is"
        assert (text in capsys.readouterr().out) == warned


@pytest.mark.parametrize("marked", [True, False])
def test_overwriting_removes_what_the_program_wrote(run: Path, marked: bool) -> None:
    """Runs of 0.1.0 have no marker: their checkpoints tell."""
    mine = [
        "notes.txt", "checkpoints/own.pth", "checkpoints/step_0000001/model.onnx",
        "predictions/figure.png", "tensorboard/own/events.txt",
    ]  # fmt: skip
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    if not marked:
        (run / MARKER).unlink()
    assert is_run(run)
    train(run, steps=2, overwrite=True)
    assert [
        name for name in mine if "step" not in name and (run / name).read_text() != "mine"
    ] == []
    assert (run / "checkpoints" / "step_0000001" / "model.onnx").read_text() == "mine"
    found = resolve_checkpoint(run)
    assert found.name == "step_0000002"
    assert len(list(run.glob("checkpoints/*/training_state.pt"))) == 3  # best, last, the step
    assert len(list(run.glob("tensorboard/events*"))) == 1


def test_a_users_file_in_a_step_folder_survives_its_step(run: Path) -> None:
    step = run / "checkpoints" / "step_0000001"
    (step / "model.onnx").write_text("mine")
    train(run, overwrite=True)
    kept = run / "checkpoints" / "kept_step_0000001_1" / "model.onnx"
    assert kept.read_text() == "mine"
    assert find_checkpoint(run / "checkpoints") == step.resolve()


@pytest.mark.parametrize("name", ["checkpoints", "predictions", "tensorboard"])
def test_nothing_is_removed_through_links(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=f"{name} is a link"):
        build_trainer(tiny_recipe(), run, overwrite=True, cpu=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_two_runs_do_not_share_a_folder(run: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", f"""
from pathlib import Path
from maskformer.system.folder_lock import lock_folder
with lock_folder(Path({str(run)!r})):
    print("locked", flush=True)
    input()
"""],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(RunInUseError, match=rf"process {holder.pid} on {os.uname()[1]}"):
                build_trainer(tiny_recipe(), run, cpu=True, **options)
    finally:
        holder.kill()
        holder.communicate()
    train(run, steps=2, resume=True)  # the lock went with the process


def test_a_process_locks_a_folder_once(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path),
        pytest.raises(RunInUseError, match="this process is already using it"),
        lock_folder(tmp_path),
    ):
        pass
    with lock_folder(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith("{")


def test_without_locks_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    train(tmp_path / "run")
    assert "cannot be locked against other runs" in capsys.readouterr().out


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS])
def test_file_systems_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "symlink", refuse)
    run = tmp_path / "run"
    train(run, steps=2)
    folder = run / "checkpoints"
    assert sorted(file.name for file in folder.iterdir()) == ["best", "last", "step_0000002"]
    assert (folder / "last").read_text() == "step_0000002\n"
    for place in (run, folder, folder / "last", folder / "best"):
        assert resolve_checkpoint(place).name == "step_0000002"
        MaskFormer.from_pretrained(place)
    assert train(run, steps=3, resume=True).step == 3
    assert {p.name for p in folder.glob("step_*")} >= {"step_0000003"}
    assert find_checkpoint(folder, LAST) == (folder / "step_0000003").resolve()
    monkeypatch.undo()
    train(run, steps=4, resume=True)  # copied to where there are links
    assert (folder / "last").is_symlink()
    assert find_checkpoint(folder, BEST) is not None


@pytest.mark.parametrize("text", ["../../outside\n", "step_1/../..", "", "step_0000001\0"])
def test_a_file_in_place_of_a_link_names_a_step_only(run: Path, text: str) -> None:
    last = run / "checkpoints" / "last"
    last.unlink()
    last.write_text(text)
    found = find_checkpoint(run / "checkpoints")
    assert found is not None
    assert found.name == "step_0000001"


def test_an_output_that_holds_the_data_is_refused(tmp_path: Path) -> None:
    images = tmp_path / "data" / "images"
    for folder in (images, tmp_path / "data" / "labels"):
        folder.mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(images / "a.jpg")
    Image.new("L", (40, 40)).save(tmp_path / "data" / "labels" / "a.png")
    split = {"images": "images", "labels": "labels"}
    data = {"format": "folder", "root": str(tmp_path / "data"), "train": split, "val": split}
    config = parse_config({**TINY, "data": {**data, "classes": ["a", "b"]}})
    for output in (images, tmp_path / "data", tmp_path):
        with pytest.raises(ValueError, match=r"cannot be the output folder.*of the data set"):
            build_trainer(config, output, cpu=True)
    build_trainer(config, tmp_path / "data" / "run", cpu=True)


def test_an_output_that_holds_the_weights_is_refused(run: Path, tmp_path: Path) -> None:
    """Afterwards one folder would hold two models. A run of its own is another matter."""
    model = tmp_path / "models" / "tiny"
    MaskFormer.from_pretrained(run).save_pretrained(model)
    for weights in (model, model / "model.safetensors"):
        for output in (model, tmp_path / "models"):
            with pytest.raises(OutputError, match=r"cannot be the output folder.*the checkpoint"):
                build_trainer(tiny_recipe(), output, weights=weights, cpu=True)
    build_trainer(tiny_recipe(), model / "run", weights=model, cpu=True)
    build_trainer(tiny_recipe(), run, weights=run, overwrite=True, cpu=True)


def test_an_output_that_holds_lists_of_a_table_is_refused(tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    for folder in ("table", "lists", "results"):
        (tmp_path / folder).mkdir()
    for key in ("classes", "label_names"):
        (lists / "names.txt").write_text("a\nb\n")
        data = {"format": "huggingface", "root": str(tmp_path / "table")}
        config = parse_config({"data": {**data, key: str(lists / "names.txt")}}).data
        for output in (lists, tmp_path / "table", tmp_path):
            with pytest.raises(OutputError, match=r"cannot be the output folder.*of the data set"):
                check_output_beside_data(output, config)
        check_output_beside_data(tmp_path / "results", config)


def test_an_output_whose_files_would_be_data_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("images/train", "images/val", "labels/val", "objects"):
        (data / name).mkdir(parents=True)
    train = {"images": "images/train", "labels": "labels/train", "objects": "objects"}
    config = folder_config(data, train=train, val={"images": "images/val", "labels": "labels/val"})
    (tmp_path / "link").symlink_to(data / "images" / "val")
    for output in (
        data / "images" / "train" / "run",
        data / "images" / "val" / "day" / "out",
        data / "labels" / "val" / "out",
        data / "objects" / "out",
        tmp_path / "link" / "out",
    ):
        with pytest.raises(
            OutputError, match=r"is inside .* of the data set.*choose a folder outside"
        ):
            check_output_beside_data(output, config)
    for output in (data / "run", data / "images" / "out", data / "labels" / "run", tmp_path / "x"):
        check_output_beside_data(output, config)
    for chosen in ({"list": "train.txt"}, {"exclude": ["runs/*"]}):  # not all that lies there
        train = {"images": ".", "labels": "labels/train", **chosen}
        config = folder_config(data, train=train, val=0.1)
        check_output_beside_data(data / "runs" / "x", config)


def test_data_that_cannot_be_reached_is_in_no_output(tmp_path: Path) -> None:
    """As where a folder above it may not be entered: the file system's error is no end of it."""
    for root in (tmp_path / "none", tmp_path / ("x" * 300)):
        val = {"images": "images/val", "labels": "labels/val"}
        check_output_beside_data(tmp_path, folder_config(root, train=val, val=val))


class Disk:
    """A disk of a given room, as `free_bytes` sees it, that also refuses to write beyond it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Path, room: float) -> None:
        self.run = run
        self.room = room
        for module in ("maskformer.training.checkpoints.room", "maskformer.system.writing"):
            monkeypatch.setattr(f"{module}.free_bytes", self.free)

    def free(self, folder: Path) -> int:
        if not folder.is_relative_to(self.run):
            return 0
        held = sum(file.stat().st_size for file in self.run.glob("checkpoints/step_*/*"))
        return max(int(self.room) - held, 0)


@pytest.fixture
def size(finished: Path) -> int:
    return sum(file.stat().st_size for file in finished.glob("checkpoints/step_*/*"))


def test_no_room_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    run = tmp_path / "run"
    Disk(monkeypatch, run, size / 2)
    with pytest.raises(
        DiskFullError, match=r"needs [\d.]+ MB in .*run, but only [\d.]+ MB are free"
    ):
        train(run)
    assert not (run / "checkpoints").exists()
    assert not is_run(run)


def test_the_last_checkpoint_makes_room_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    run = tmp_path / "run"
    Disk(monkeypatch, run, 2.5 * size)
    scores = iter([0.9, 0.1, 0.1, 0.1])
    real = checkpoints.mark_best
    monkeypatch.setattr(
        "maskformer.training.checkpointer.mark_best",
        lambda folder, step, _, **options: real(folder, step, next(scores), **options),
    )
    recipe = tiny_recipe(steps=4, evaluate_every=1)
    build_trainer(recipe, run, cpu=True).fit()
    steps = sorted(path.name for path in run.glob("checkpoints/step_*"))
    assert steps == ["step_0000001", "step_0000004"]


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_full_disk_at_the_last_step_costs_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, comes_back: bool
) -> None:
    run = tmp_path / "run"
    disk = Disk(monkeypatch, run, 2 * size)
    trainer = build_trainer(tiny_recipe(steps=2), run, cpu=True)
    step, evaluate = trainer._train_step, trainer._evaluate

    def fill(*args: Any) -> None:
        step(*args)
        disk.room = size / 2

    def free() -> Any:
        disk.room = 2 * size if comes_back else disk.room
        return evaluate()

    monkeypatch.setattr(trainer, "_train_step", fill)
    monkeypatch.setattr(trainer, "_evaluate", free)
    if comes_back:
        trainer.fit()
        found = resolve_checkpoint(run)
        assert found == find_checkpoint(run / "checkpoints", BEST)
    else:
        with pytest.raises(
            CheckpointError, match=r"needs .* MB .* MB are free.*weights_step_0000002"
        ):
            trainer.fit()
        found = run / "weights_step_0000002"
    model = MaskFormer.from_pretrained(found)
    for name, value in trainer.bare_model.state_dict().items():
        assert model.state_dict()[name].equal(value), name
    assert (run / "metrics.json").is_file()
