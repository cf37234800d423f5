"""Processes that `torchrun` starts again meet in the store that earlier ones have used."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed.distributed_c10d import HashStore

from maskformer.system.process_group import agree_on_start

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
