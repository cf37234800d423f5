"""`torchrun --max-restarts`: what is started again goes on, on one machine and on two."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from helpers.process_groups import free_port
from helpers.recipes import TINY, write_recipe

from maskformer.weights.locate import find_checkpoint

pytestmark = pytest.mark.slow

STEPS = 60


def recipe(folder: Path, **train: object) -> Path:
    train = {**TINY["train"], "steps": STEPS, "batch_size": 4, "checkpoint_every": 5, **train}
    return write_recipe(folder, {**TINY, "train": train})


def torchrun(folder: Path, *launcher: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "maskformer"]
    arguments = ["train", "--auto-resume", "--config", str(folder / "tiny.yaml")]
    return [*command, *arguments, "--output", str(folder / "run")]


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Ends the process and its children, however the test ends."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            yield process
        finally:
            if process.poll() is None:
                for each in (*psutil.Process(process.pid).children(recursive=True), process):
                    each.kill()
                process.wait()


def wait_for_step(run: Path, step: int, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = find_checkpoint(run / "checkpoints")
        if found is not None and int(found.name.removeprefix("step_")) >= step:
            return
        time.sleep(0.2)
    raise TimeoutError(f"{run} did not come to step {step}")


def trainers(launcher: int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(launcher).children(recursive=True)
        if "maskformer" in child.cmdline() and "torch.distributed.run" not in child.cmdline()
    ]


def test_torchrun_goes_on_after_a_process_was_killed(tmp_path: Path) -> None:
    recipe(tmp_path)
    command = torchrun(
        tmp_path, "--nproc-per-node=4", "--max-restarts=1", f"--master-port={free_port()}"
    )
    with started(command, tmp_path / "log.txt") as process:
        wait_for_step(tmp_path / "run", 10)
        trainers(process.pid)[1].send_signal(signal.SIGKILL)
        assert process.wait(600) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == STEPS


def test_another_number_of_processes_goes_on(tmp_path: Path) -> None:
    for count, steps in ((4, 4), (2, 8), (1, 12)):
        recipe(tmp_path, steps=steps)
        command = torchrun(tmp_path, f"--nproc-per-node={count}", f"--master-port={free_port()}")
        with started(command, tmp_path / "log.txt") as process:
            assert process.wait(600) == 0, (tmp_path / "log.txt").read_text()
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == steps


@contextmanager
def two_machines() -> Iterator[list[list[str]]]:
    """Network namespaces with a cable between them; gives what starts a command in each."""
    names = [f"maskformer{os.getpid()}{letter}" for letter in "ab"]
    ends = [f"mf{os.getpid() % 100000}{letter}" for letter in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.233.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={end}"]
               for name, end in zip(names, ends, strict=True)]  # fmt: skip
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    finally:
        for name in names:
            if shutil.which("ip"):
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_a_machine_that_disappears_is_done_without(tmp_path: Path) -> None:
    """Its network goes down and its processes die: the other one goes on alone."""
    recipe(tmp_path, process_timeout=20)
    with two_machines() as (first, second):
        launcher = ["--nnodes=1:2", "--nproc-per-node=2", "--max-restarts=3",
                    "--rdzv-backend=c10d", "--rdzv-id=test",
                    "--rdzv-endpoint=10.233.0.1:29400"]  # fmt: skip
        # Who keeps the store is told: both have the host name by which torchrun would find out.
        conf = "--rdzv-conf=last_call_timeout=5,keep_alive_interval=1,is_host"
        commands = [
            [
                *machine,
                *torchrun(
                    tmp_path,
                    *launcher,
                    f"{conf}={number == 1}",
                    f"--local-addr=10.233.0.{number}",
                ),
            ]
            for number, machine in enumerate((first, second), 1)
        ]
        with started(commands[0], tmp_path / "1.txt") as one:
            with started(commands[1], tmp_path / "2.txt"):
                wait_for_step(tmp_path / "run", 10)
                end = second[-1].partition("=")[2]
                subprocess.run([*second[:4], "ip", "link", "set", end, "down"], check=True)
                before = time.monotonic()
                wait_for_step(tmp_path / "run", 15)
            assert time.monotonic() - before < 300
            assert one.wait(600) == 0, (tmp_path / "1.txt").read_text()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == STEPS
