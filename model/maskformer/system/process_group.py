"""The processes of one command, started by a launcher such as `torchrun`."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import torch
from accelerate import PartialState
from torch import distributed, nn

from maskformer.errors import UsageError
from maskformer.system.processes import local_world_size, world_size

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
PATIENCE_SECONDS = 600.0
"""Default time in seconds that processes wait for one that hangs."""


def join_processes(*, cpu: bool = False, timeout: float = PATIENCE_SECONDS) -> PartialState:
    """Join the process group of the launcher: through NCCL on GPUs, or through gloo on CPUs.

    Args:
        cpu: use the CPU even if there is a GPU.
        timeout: the time in seconds that the processes wait for each other.

    Raises:
        UsageError: there are more processes than GPUs, or the launcher's settings are incomplete or
            not supported.
        ConnectionError: other processes did not join, or cannot be reached.
    """
    cpu = cpu or not torch.accelerator.is_available()
    wanted, here = world_size(), local_world_size()
    if not cpu and here > (count := torch.accelerator.device_count()):
        raise UsageError(
            f"{here} processes were started on this machine, which has {count} GPUs: start one for "
            "each (torchrun --nproc-per-node gpu), or use the CPU"
        )
    limit = timedelta(seconds=timeout)
    start = "start them with torchrun or accelerate launch"
    try:
        state = PartialState(cpu=cpu, timeout=limit, **_own_store(limit) if wanted > 1 else {})
    except ValueError as error:  # incomplete settings of the rendezvous
        reason = f"the {wanted} processes of WORLD_SIZE cannot find each other"
        raise UsageError(f"{reason}: {start} ({error})") from error
    except RuntimeError as error:
        who = f"process {os.environ.get('RANK', '0')} could not join the {wanted} of its launcher"
        raise ConnectionError(f"{who}: {str(error).partition(chr(10))[0]}") from error
    if state.num_processes < wanted:  # MPI launchers use other variables
        raise UsageError(
            f"the launcher started {wanted} processes (WORLD_SIZE), but only "
            f"{state.num_processes} would work together: {start}"
        )
    return state


def _own_store(timeout: timedelta) -> dict[str, Any]:
    """Return arguments of `init_process_group` with a store that is new each time that `torchrun`
    starts or restarts the processes.

    Its agent uses the same store for all restarts, in which processes would find the addresses of
    processes that have ended (pytorch#135712). Its number of restarts cannot be used as a prefix,
    because it differs between machines.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or distributed.is_initialized():
        return {}
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    start = agree_on_start(store, rank, count, timeout)
    prefixed = PrefixStore(f"maskformer/{start}", store)
    return {"store": prefixed, "rank": rank, "world_size": count}


def agree_on_start(store: Store, rank: int, count: int, timeout: timedelta) -> str:
    """Agree on a unique name for this start, through a store that earlier processes have used.

    Each process asks the first one with a random question, so that an answer to it cannot be from
    an earlier start. It confirms the answer under the agreed name.

    Raises:
        ConnectionError: not all processes joined in time.
    """
    if rank > 0:
        question = uuid4().hex
        store.set(f"maskformer/question/{rank}", question)
        start = store.get(f"maskformer/answer/{question}").decode()
        store.set(f"maskformer/{start}/joined/{rank}", "")
        return start
    start = uuid4().hex
    deadline = time.monotonic() + timeout.total_seconds()
    missing = list(range(1, count))
    while missing:
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"{len(missing)} of {count} processes did not join within "
                f"{timeout.total_seconds():g} s, the first of them process {missing[0]}"
            )
        for other in missing:
            if store.check([key := f"maskformer/question/{other}"]):
                store.set(f"maskformer/answer/{store.get(key).decode()}", start)
        time.sleep(0.02)
        missing = [x for x in missing if not store.check([f"maskformer/{start}/joined/{x}"])]
    return start


def broadcast_buffers(model: nn.Module) -> None:
    """Broadcast the buffers of the first process, which are those that are saved. The statistics of
    BatchNorm differ between processes after a step, because each has other images.
    """
    if distributed.is_available() and distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def gather_in_order(items: list[T], run: int = 1) -> list[T]:
    """Gather the items of all n processes in the order of the original list, of which each process
    got every n-th run of `run` consecutive items.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return items
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, items)
    runs = ([part[at : at + run] for at in range(0, len(part), run)] for part in parts)
    turns = chain.from_iterable(zip_longest(*runs, fillvalue=()))
    return list(chain.from_iterable(turns))
