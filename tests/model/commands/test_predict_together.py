"""`maskformer predict` and `evaluate`: interrupted, in batches and in several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, PartialState
from helpers.command_line import Run
from helpers.process_groups import free_port, join_processes
from PIL import Image

from maskformer.cli import main
from maskformer.predict.journal import Entry, Journal
from maskformer.system.folder_lock import LOCK, lock_folder

SIZES = ((96, 80), (64, 64), (64, 64), (80, 96), (64, 64), (33, 70), (96, 80))
TIMES = ("eval_images_per_second", "peak_memory_mb")
EVERY = ("eval.object_mask_threshold=0", "eval.overlap_threshold=0")
"""Segments, also of a model that learnt nothing."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Some share a name; one is broken."""
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        file = tmp_path / "photos" / str(number % 3) / f"{number // 3}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (height, width, 3), np.uint8)).save(file)
    (tmp_path / "photos" / "1" / "broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files; figures of time and memory are left out."""
    found = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    if "metrics.json" in found:
        metrics = json.loads(found["metrics.json"])
        for name in TIMES:
            del metrics[name]
        found["metrics.json"] = json.dumps(metrics).encode()
    return found


def command(rank: int, count: int, port: int, arguments: list[str]) -> None:
    """What `torchrun` starts."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    join_processes(rank, count, port)
    os.environ["WORLD_SIZE"] = str(count)
    PartialState._reset_state()
    AcceleratorState._reset_state()
    sys.argv = ["maskformer", *arguments]
    main()


def together(count: int, *arguments: object) -> list[int | None]:
    """The exit codes of processes that share a command."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maskformer.commands.train"])
    port, words = free_port(), [str(argument) for argument in arguments]
    processes = [
        context.Process(target=command, args=(rank, count, port, words)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize(
    ("mode", "batch_size"), [("semantic", "1"), ("panoptic", "2"), ("instance", "1")]
)
def test_an_interrupted_call_goes_on(
    run: Run,
    trained: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    batch_size: str,
) -> None:
    """Killed while it writes the fourth image: then, the same files as without."""
    whole, parts = photos.parent / "whole", photos.parent / "parts"
    options = ["--checkpoint", trained, "--mode", mode, *EVERY, "--batch-size", batch_size]
    code, _, err = run("predict", photos, *options, "--out", whole)
    assert code == 1, err  # one image is broken
    process = multiprocessing.get_context("fork").Process(
        target=die_after, args=(4, ["predict", str(photos), *map(str, options), "--out", parts])
    )
    process.start()
    process.join(120)
    assert process.exitcode == 9
    assert not (parts / "files.json").exists()
    for folder in {file.parent for file in parts.rglob("*.png")}:
        (folder / ".01234567.partial").write_bytes(b"half a picture")
    drawn: list[str] = []
    monkeypatch.setattr("maskformer.output.picture_writer.save_picture", spy_on_names(drawn))
    code, out, err = run("predict", photos, *options, "--out", parts, "--skip-existing")
    assert code == 1, err
    assert contents(parts) == contents(whole)
    if batch_size == "1":
        assert "4 of 8 images are already done" in out
        assert len(drawn) == 3
        (parts / "1.png").unlink()
        next(photos.rglob("0.png")).touch()
        drawn.clear()
        run("predict", photos, *options, "--out", parts, "--skip-existing")
        assert len(drawn) == 2
        assert contents(parts).keys() == contents(whole).keys()
        _, out, _ = run("predict", photos, *options, "--out", parts, "--skip-existing")
        assert "7 of 8 images are already done" in out
        assert "7 images done; the results are in" in out
    code, _, err = run(
        "predict", photos, *options, "predict.opacity=0", "--out", parts, "--skip-existing"
    )
    assert code == 1
    assert "holds results of another model, mode or recipe" in err


def test_two_calls_do_not_share_a_folder(
    run: Run, trained: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict = ["predict", photos, "--checkpoint", trained, "--out", out]
    evaluate = ["evaluate", "--checkpoint", trained, "--output", out / "scores"]
    for arguments, folder in ((predict, out), (evaluate, out / "scores")):
        with other_process_in(folder) as holder:
            code, _, err = run(*arguments)
            assert code == 1
            assert f"{folder} is in use by process {holder} on {os.uname()[1]}; wait for it" in err
        code, _, err = run(*arguments)
        assert "in use" not in err
        assert not (folder / LOCK).exists()
    assert len(json.loads((out / "files.json").read_text())) == 7


@contextmanager
def other_process_in(folder: Path) -> Iterator[int]:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(folder, ready, done))
    holder.start()
    try:
        assert ready.wait(60)
        assert holder.pid is not None
        yield holder.pid
    finally:
        done.set()
        holder.join()


def hold(folder: Path, ready: Event, done: Event) -> None:
    with lock_folder(folder):
        ready.set()
        done.wait(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_a_list_of_what_is_finished(
    run: Run,
    trained: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    """Twice at once, as `timeout` sends it."""
    whole, parts = photos.parent / "whole", photos.parent / "parts"
    options = ["--mode", "semantic", "--batch-size", "1"]
    predict = ["predict", photos, "--checkpoint", trained, *options, "--out"]
    assert run(*predict, whole)[0] == 1  # one image is broken
    add, count = Journal.add, [0]

    def stopping(journal: Journal, entry: Entry) -> None:
        add(journal, entry)
        count[0] += 1
        if count[0] == 4:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", stopping)
        code, _, err = run(*predict, parts)
    assert code == 128 + number
    assert f"stopped; files.json in {parts} lists" in " ".join(err.split())
    assert "the same command and --skip-existing" in " ".join(err.split())
    listed = json.loads((parts / "files.json").read_text())
    assert len(listed) in (3, 4)
    assert all((parts / entry["picture"]).is_file() for entry in listed)
    code, out, err = run(*predict, parts, "--skip-existing")
    assert code == 1, err
    assert "4 of 8 images are already done" in out
    assert contents(parts) == contents(whole)


def spy_on_names(drawn: list[str]) -> Callable[..., None]:
    from maskformer.output.pictures import save_picture

    def save(picture: object, file: Path) -> None:
        drawn.append(file.name)
        save_picture(picture, file)  # type: ignore[arg-type]

    return save


def die_after(images: int, arguments: list[str]) -> None:
    add, count = Journal.add, [0]

    def counting(journal: Journal, entry: Entry) -> None:
        add(journal, entry)
        count[0] += 1
        if count[0] == images:
            os._exit(9)

    Journal.add = counting  # type: ignore[method-assign]
    sys.argv = ["maskformer", *map(str, arguments)]
    main()


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_give_the_files_of_one(run: Run, trained: Path, photos: Path, count: int) -> None:
    alone, shared = photos.parent / "alone", photos.parent / "shared"
    predict = ["predict", photos, "--checkpoint", trained, *EVERY, "--out"]
    assert run(*predict, alone)[0] == 1
    assert together(count, *predict, shared) == [1] * count
    assert contents(shared) == contents(alone)
    evaluate = ["evaluate", "--checkpoint", trained, "--save-maps", "eval.pictures=3", *EVERY]
    assert run(*evaluate, "--output", alone / "evaluation")[0] == 0
    assert together(count, *evaluate, "--output", shared / "evaluation") == [0] * count
    assert contents(shared / "evaluation") == contents(alone / "evaluation")
