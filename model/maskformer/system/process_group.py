"""The processes that a launcher such as `torchrun` started to work together."""

from __future__ import annotations

import os
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from maskformer.errors import UsageError

T = TypeVar("T")
PATIENCE_SECONDS = 600.0
"""How long processes wait for one that hangs, unless a recipe says otherwise."""


def join_processes(*, cpu: bool = False, timeout: float = PATIENCE_SECONDS) -> PartialState:
    """This process among those of its launcher: on GPUs through NCCL, or, where there is none,
    on CPUs through gloo.

    Args:
        cpu: use the CPU even if there is a GPU.
        timeout: seconds that the processes wait for one another.

    Raises:
        UsageError: more processes than GPUs, or a launcher's processes that cannot be joined.
    """
    cpu = cpu or not torch.accelerator.is_available()
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not cpu and here > (count := torch.accelerator.device_count()):
        raise UsageError(
            f"{here} processes were started on this machine, which has {count} GPUs: start one for "
            "each (torchrun --nproc-per-node gpu), or use the CPU"
        )
    state = PartialState(cpu=cpu, timeout=timedelta(seconds=timeout))
    if state.num_processes < wanted:  # MPI's launchers tell the number otherwise
        raise UsageError(
            f"the launcher started {wanted} processes (WORLD_SIZE), but {state.num_processes} "
            "would work together: start them with torchrun or accelerate launch"
        )
    return state


def gather_in_turn(items: list[T], run: int = 1) -> list[T]:
    """What all processes have, where each got every n-th run of a list: in the list's order."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return items
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, items)
    runs = ([part[at : at + run] for at in range(0, len(part), run)] for part in parts)
    turns = chain.from_iterable(zip_longest(*runs, fillvalue=()))
    return list(chain.from_iterable(turns))
