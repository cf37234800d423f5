"""The processes that a launcher such as `torchrun` started to work together."""

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

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

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
        ConnectionError: the others do not come, or cannot be reached.
    """
    cpu = cpu or not torch.accelerator.is_available()
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not cpu and here > (count := torch.accelerator.device_count()):
        raise UsageError(
            f"{here} processes were started on this machine, which has {count} GPUs: start one for "
            "each (torchrun --nproc-per-node gpu), or use the CPU"
        )
    limit = timedelta(seconds=timeout)
    start = "start them with torchrun or accelerate launch"
    try:
        state = PartialState(cpu=cpu, timeout=limit, **_own_store(limit) if wanted > 1 else {})
    except ValueError as error:  # half a rendezvous
        reason = f"the {wanted} processes of WORLD_SIZE cannot find one another"
        raise UsageError(f"{reason}: {start} ({error})") from error
    except RuntimeError as error:
        who = f"process {os.environ.get('RANK', '0')} could not join the {wanted} of its launcher"
        raise ConnectionError(f"{who}: {str(error).partition(chr(10))[0]}") from error
    if state.num_processes < wanted:  # MPI's launchers tell the number otherwise
        raise UsageError(
            f"the launcher started {wanted} processes (WORLD_SIZE), but {state.num_processes} "
            f"would work together: {start}"
        )
    return state


def _own_store(timeout: timedelta) -> dict[str, Any]:
    """For `init_process_group`: where processes that `torchrun` starts again meet.

    Its agent keeps one store for all starts, in which they would find the addresses of processes
    that have ended (pytorch#135712); its count of restarts differs between machines.
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
    """A name that only these processes have, in a store that earlier ones have used, too.

    Each asks with a word of its own, so that an answer to it is new; that it has the answer is said
    under the name.

    Raises:
        ConnectionError: not all processes came.
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


def share_buffers(model: nn.Module) -> None:
    """Gives all processes the buffers of the first one, which saves them: the statistics of
    BatchNorm are those of each one's own images since the last step.
    """
    if distributed.is_available() and distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def gather_in_turn(items: list[T], run: int = 1) -> list[T]:
    """What all processes have, where each got every n-th run of a list: in the list's order."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return items
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, items)
    runs = ([part[at : at + run] for at in range(0, len(part), run)] for part in parts)
    turns = chain.from_iterable(zip_longest(*runs, fillvalue=()))
    return list(chain.from_iterable(turns))
