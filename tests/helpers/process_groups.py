"""Process groups on this machine, set up as torchrun does."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
import torch.multiprocessing


def forks() -> ForkServerContext:
    """A context that forks processes from a server that has imported everything, computed nothing.

    Forking the test process itself would not work: PyTorch refuses to run a backward pass in a fork
    of a process that has already run one in threads, as other tests do.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maskformer.commands.train"])
    return context


def run_two(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function with the rank and these arguments in two processes, raising their errors."""
    forks()
    torch.multiprocessing.start_processes(function, arguments, 2, start_method="forkserver")


def join_processes(rank: int, world_size: int, port: int) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
    )
    torch.set_num_threads(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
