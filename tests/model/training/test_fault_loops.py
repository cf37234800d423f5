"""Runs that are killed or signalled at random moments end, once resumed, as if nothing had been.

`pytest -m slow -s tests/model/training/test_fault_loops.py` prints a table; MFKERNELS_FAULT_LOOPS
sets the count.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from helpers.recipes import TINY, write_recipe

from maskformer.cli import main
from maskformer.training.run_folder import MARKER
from maskformer.weights.locate import find_checkpoint

LOOPS = int(os.environ.get("MFKERNELS_FAULT_LOOPS", "25"))
STEPS, CHECKPOINT_EVERY, EVALUATE_EVERY = 8, 2, 4
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def command(arguments: list[str], log: Path) -> None:
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    PartialState._reset_state()
    AcceleratorState._reset_state()
    torch.set_num_threads(1)
    sys.argv = ["maskformer", "train", "--cpu", *arguments]
    main()


class Run:
    def __init__(self, folder: Path) -> None:
        self.output = folder / "run"
        self.log = folder / "log.txt"
        train = {**TINY["train"], "steps": STEPS, "workers": 1}
        train |= {"checkpoint_every": CHECKPOINT_EVERY, "evaluate_every": EVALUATE_EVERY}
        folder.mkdir(exist_ok=True)
        data = {**TINY["data"], "train_images": 8, "val_images": 2}
        evaluation = {**TINY["eval"], "pictures": 1}
        values = {**TINY, "data": data, "train": train, "eval": evaluation}
        self.recipe = write_recipe(folder, values)

    def start(self, *more: str) -> multiprocessing.Process:
        arguments = ["--config", str(self.recipe), "--output", str(self.output), *more]
        # A fork saves the seconds of the imports, and is a process like any other.
        process = multiprocessing.get_context("fork").Process(
            target=command, args=(arguments, self.log)
        )
        process.start()
        return process  # type: ignore[return-value]

    def wait_for_training(self, process: multiprocessing.Process) -> None:
        while process.is_alive() and not (self.output / MARKER).is_file():
            time.sleep(0.005)

    def saved_step(self) -> int:
        """-1 where nothing was saved."""
        checkpoint = find_checkpoint(self.output / "checkpoints")
        return int(checkpoint.name.removeprefix("step_")) if checkpoint else -1

    def reported_step(self) -> int:
        """The last step that the log tells of."""
        lines = [line for line in self.log.read_text().splitlines() if "loss" in line]
        return int(lines[-1].split()[1].partition("/")[0]) if lines else 0

    def result(self) -> tuple[str, float]:
        """A hash of the final weights, and the score."""
        checkpoint = find_checkpoint(self.output / "checkpoints")
        assert checkpoint is not None
        assert checkpoint.name == f"step_{STEPS:07d}"
        content = (checkpoint / "model.safetensors").read_bytes()
        metrics = json.loads((self.output / "metrics.json").read_text())
        return hashlib.sha256(content).hexdigest(), metrics["miou"]


@pytest.fixture(scope="module", autouse=True)
def asked_for(request: pytest.FixtureRequest) -> None:
    if "slow" not in request.config.option.markexpr:
        pytest.skip("takes minutes: pytest -m slow")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, float], float]:
    """The result of a run without any fault, and the seconds of its training."""
    run = Run(tmp_path_factory.mktemp("whole"))
    process = run.start()
    run.wait_for_training(process)
    started = time.monotonic()
    process.join(120)
    assert process.exitcode == 0, run.log.read_text()
    return run.result(), time.monotonic() - started


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["kill", "signal"])
def test_no_result_is_lost(
    tmp_path: Path, whole: tuple[tuple[str, float], float], kind: str
) -> None:
    wanted, seconds = whole
    moments = random.Random(kind)
    lost = []
    for loop in range(LOOPS):
        run = Run(tmp_path / str(loop))
        moment = moments.uniform(0, 0.95) * seconds
        number = signal.SIGKILL
        if kind == "signal":
            number = (*STOPPING, signal.SIGUSR2)[loop % 5]
        process = run.start()
        run.wait_for_training(process)
        process.join(moment)
        finished = process.exitcode is not None
        if not finished:
            assert process.pid is not None
            os.kill(process.pid, number)
        process.join(60)
        reported, saved = run.reported_step(), run.saved_step()
        code = process.exitcode
        if code != 0:
            second = run.start("--resume" if saved >= 0 else "--overwrite")
            second.join(120)
            good = second.exitcode == 0
        else:
            good = True
        good = good and run.result() == wanted
        if kind == "kill":
            good = good and max(saved, 0) >= reported - CHECKPOINT_EVERY
        elif code in [128 + n for n in STOPPING] and saved >= 0:
            good = good and saved >= reported
        print(
            f"{kind} {loop:2}  {'after the end' if finished else number.name:13}  {moment:5.2f} s  "
            f"exit {code:4}  finished {reported}  saved {saved:2}  {'same' if good else 'LOST'}"
        )
        if not good:
            lost.append((loop, run.log.read_text()))
    assert not lost


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir(parents=True)
    size = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path, left: int) -> None:
    """Writes until `left` bytes are free."""
    with suppress(OSError), file.open("wb", buffering=0) as stream:
        while (free := shutil.disk_usage(file.parent).free) > left:
            stream.write(bytes(min(1 << 20, free - left)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")
def test_a_full_disk_loses_nothing(
    tmp_path: Path, whole: tuple[tuple[str, float], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody fills the disk at a random moment of training, and makes room after its end."""
    wanted, seconds = whole
    moments = random.Random("disk")
    lost = []
    for loop in range(LOOPS):
        run = Run(tmp_path / str(loop))
        moment, left = moments.uniform(0, 0.95) * seconds, moments.choice((0, 1, 2, 5)) << 20
        elsewhere = tmp_path / str(loop) / "temporary"
        elsewhere.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
        with small_disk(tmp_path / str(loop) / "disk", 300) as disk:
            run.output = disk / "run"
            process = run.start()
            run.wait_for_training(process)
            process.join(moment)
            filler = disk / "filler"
            fill(filler, left)
            process.join(120)
            code, reported, saved = process.exitcode, run.reported_step(), run.saved_step()
            filler.unlink()
            kept = [*run.output.rglob("weights_step_*"), *elsewhere.glob("*weights_step_*")]
            good = reported < STEPS or saved == STEPS or bool(kept)  # a trained model is somewhere
            if code != 0:
                second = run.start("--resume" if saved >= 0 else "--overwrite")
                second.join(120)
                good = good and second.exitcode == 0
            good = good and run.result() == wanted
        print(
            f"disk {loop:2}  {left >> 20} MB left after {moment:5.2f} s  exit {code}  "
            f"finished {reported}  saved {saved:2}  {'same' if good else 'LOST'}"
        )
        if not good:
            lost.append((loop, run.log.read_text()))
    assert not lost
