"""Runs that are killed or signalled at random moments end, once resumed, as if nothing had been.

`pytest -m slow -s tests/test_fault_loops.py` prints a table; MFKERNELS_FAULT_LOOPS sets the count.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from recipes import TINY, write_recipe

from maskformer.checkpoint import find_checkpoint
from maskformer.cli import main
from maskformer.run_folder import MARKER

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
