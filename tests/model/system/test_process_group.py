"""How the processes of a launcher find one another, and what is said where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from accelerate.state import AcceleratorState, PartialState
from helpers.process_groups import free_port
from torch.distributed import HashStore

from maskformer.errors import UsageError
from maskformer.system.process_group import agree_on_start, join_processes

LIMIT = timedelta(seconds=60)


def start(store: HashStore, ranks: list[int]) -> set[str]:
    """The names that processes, which ask in this order, agree on."""
    with ThreadPoolExecutor(len(ranks)) as threads:
        asked = [threads.submit(agree_on_start, store, r, len(ranks), LIMIT) for r in ranks]
        return {one.result() for one in asked}


def test_each_start_agrees_on_a_name_of_its_own() -> None:
    """More processes than before, fewer, and those of which one was ended before all had come."""
    store = HashStore()
    store.set_timeout(LIMIT)
    names = [start(store, ranks) for ranks in ([0, 1], [2, 1, 0], [0, 1, 2, 3], [1, 0])]
    with pytest.raises(
        ConnectionError, match=r"1 of 2 processes did not join within 0 s, .* process 1"
    ):
        agree_on_start(store, 0, 2, timedelta(0))
    names.append(start(store, [1, 0]))
    assert [len(name) for name in names] == [1] * 5
    assert len(set.union(*names)) == 5


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Process 0 of two, without the other one."""
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # accelerate sets some: what was is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    PartialState._reset_state()  # which an earlier test may have left
    yield monkeypatch
    PartialState._reset_state()
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("launched")
def test_processes_without_a_rendezvous_are_refused() -> None:
    with pytest.raises(UsageError, match=r"2 processes of WORLD_SIZE .* torchrun or accelerate"):
        join_processes(cpu=True)


def test_a_process_that_nobody_joins_says_so(launched: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        launched.setenv(name, str(value))
    with pytest.raises(ConnectionError, match="process 0 could not join the 2 of its launcher"):
        join_processes(cpu=True, timeout=1)
