"""Two processes that train together: one of them says why they end, and both end soon."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from helpers.process_groups import forks, free_port, join_processes
from helpers.recipes import TINY, write_recipe

from maskformer.cli import main
from maskformer.data import Batch
from maskformer.errors import DatasetError, TrainingDivergedError
from maskformer.system import processes
from maskformer.training import signal_agreement
from maskformer.training.log_window import LogWindow
from maskformer.training.trainer import Trainer
from maskformer.weights.locate import find_checkpoint

Fault = Callable[[int], None]


def command(
    rank: int,
    port: int,
    folder: Path,
    fault: Fault,
    arguments: list[str],
    settings: dict[str, float],
    sleep_exits: bool,
) -> None:
    """What `torchrun` starts; the output goes to a file."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as `torchrun` does
    for name, value in settings.items():
        setattr(processes if hasattr(processes, name) else signal_agreement, name, value)
    if sleep_exits:
        processes.time.sleep = lambda _: os._exit(9)  # type: ignore[assignment]
    output = os.open(folder / f"{rank}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    join_processes(rank, 2, port)
    PartialState._reset_state()
    AcceleratorState._reset_state()
    train_step = Trainer._train_step

    def faulty(one: Trainer, parts: list[Batch], window: LogWindow) -> None:
        train_step(one, parts, window)
        if one.step == 3:
            fault(rank)

    Trainer._train_step = faulty  # type: ignore[method-assign]
    sys.argv = ["maskformer", *arguments]
    main()


def together(
    folder: Path,
    fault: Fault,
    *,
    recipe: str = "tiny.yaml",
    settings: dict[str, float] | None = None,
    sleep_exits: bool = False,
    options: Sequence[str] = ("--cpu",),
) -> tuple[list[int | None], str]:
    """Trains with two processes, in which a function is called with the rank after step 4.

    Args:
        folder: for the recipe, the run and what the processes say.
        fault: the function.
        recipe: the file that is asked for.
        settings: constants of `processes` and `signal_agreement`.
        sleep_exits: end the process with 9 where it would wait for its launcher.
        options: more arguments of the command.

    Returns:
        Their exit codes, and what both said besides the steps and how they are computed.
    """
    write_recipe(folder, {**TINY, "train": {**TINY["train"], "steps": 100_000, "batch_size": 4}})
    arguments = [
        "train",
        *options,
        "--config",
        str(folder / recipe),
        "--output",
        str(folder / "run"),
    ]
    port = free_port()
    context = forks()
    shared = (port, folder, fault, arguments, settings or {}, sleep_exits)
    both = [context.Process(target=command, args=(rank, *shared)) for rank in range(2)]
    for process in both:
        process.start()
    try:
        for process in both:
            process.join(120)
        codes = [process.exitcode for process in both]
    finally:
        for process in both:
            process.kill()
    said = "".join((folder / f"{rank}.txt").read_text() for rank in range(2))
    said = re.sub(
        r"^\[(rank\d+\]:\[)?W\d{4}.*?(?=^error|\Z)", "", said, flags=re.M | re.S
    )  # c10d's
    return codes, "".join(
        line
        for line in said.splitlines(True)
        if not line.startswith(("step", "training on", "running"))
    )


def break_data(failing: int, rank: int) -> None:
    if rank == failing:
        raise DatasetError("a broken image")


def diverge(rank: int) -> None:
    raise TrainingDivergedError("no finite gradient")


def send(number: int, to: int, rank: int) -> None:
    if rank == to:
        os.kill(os.getpid(), number)


def hang(folder: Path, rank: int) -> None:
    """Until the other process has given up."""
    while rank == 1:
        time.sleep(0.1)
        if "error: " in (folder / "0.txt").read_text():
            os._exit(9)


def nothing(rank: int) -> None:
    pass


@pytest.mark.parametrize("failing", [0, 1])
def test_the_process_that_failed_says_why(tmp_path: Path, failing: int) -> None:
    codes, said = together(tmp_path, partial(break_data, failing))
    assert codes == [1, 1]
    assert said.strip() == "error: a broken image"


def test_what_all_processes_find_is_said_once(tmp_path: Path) -> None:
    codes, said = together(tmp_path, diverge)
    assert codes == [1, 1]
    assert said.strip() == "error: no finite gradient"


@pytest.mark.parametrize("killed", [0, 1])
def test_the_loss_of_a_killed_process_is_said(tmp_path: Path, killed: int) -> None:
    codes, said = together(
        tmp_path, partial(send, signal.SIGKILL, killed), settings={"GRACE_SECONDS": 0.5}
    )
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 1
    assert f"error: process {1 - killed} lost the connection to another process" in said
    assert said.count("error: ") == 1
    assert "Traceback" not in said


@pytest.mark.skipif(torch.accelerator.is_available(), reason="would train on it")
def test_one_that_hangs_is_given_up_also_where_no_option_says_cpu(tmp_path: Path) -> None:
    codes, said = together(
        tmp_path,
        partial(hang, tmp_path),
        settings={"GRACE_SECONDS": 0.5, "STORE_SECONDS": 0.0},
        options=["train.process_timeout=3"],
    )
    assert codes == [1, 9]
    assert "process 0 timed out waiting for another process, which hangs" in said
    assert said.count("error: ") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv", "hangs"),
        ("Application timeout caused pair closure", "hangs"),
        ("Operation timed out!", "hangs"),
        ("Connection closed by peer [127.0.0.1]:29500", "killed"),
    ],
)
def test_every_word_for_a_lost_connection_is_known(message: str, cause: str) -> None:
    """Which of the first three gloo says depends on which of its threads looks first."""
    error = RuntimeError(message)
    assert processes._lost_connection(error)
    assert cause in processes._explain(error, "start it again")


def test_a_mistake_in_the_command_is_said_by_the_first(tmp_path: Path) -> None:
    """The launcher ends the others when the first has failed; here, nobody does."""
    codes, said = together(
        tmp_path, nothing, recipe="none.yaml", settings={"GRACE_SECONDS": 100.0}, sleep_exits=True
    )
    assert codes == [1, 9]
    assert said.count("error: ") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_one_process_stops_and_saves_both(
    tmp_path: Path, number: signal.Signals
) -> None:
    """When they ask each other next, and not before: they must come to save together."""
    codes, said = together(tmp_path, partial(send, number, 1), settings={"AGREE_SECONDS": 1e6})
    assert codes == [128 + number] * 2
    assert said.strip().startswith("stopped at step 11/")
    assert said.strip().count("\n") == 0
    saved = find_checkpoint(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert saved.name == "step_0000011"
    assert len(list(saved.glob("rng_*.pt"))) == 2
