"""Several processes that train together: one of them says why they ended."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from maskformer.errors import StoppedError

GRACE_SECONDS = 3.0
"""How long a process whose failure another one may explain waits to be ended by its launcher."""
STORE_SECONDS = 60.0
"""How long the process that keeps the store waits, at most, for the others to ask who told."""
_TOLD = "maskformer/failures"
_LOST_CONNECTION = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "timeout caused pair closure",  # gloo, of every operation but the one that waited
    "Operation timed out",
)


@contextmanager
def one_voice(remedy: str) -> Iterator[None]:
    """Lets the error of the process that failed first through; the others end without a word.

    Does nothing where one process works alone.

    Args:
        remedy: what to do where a process is lost.

    Raises:
        SystemExit: in place of an error that another process has told.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # PyTorch, which is not imported yet, would warn of every connection that another one ends.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        yield
    except StoppedError as stop:  # all processes were asked to
        if _rank() > 0:
            sys.exit(stop.exit_code)
        raise
    except Exception as error:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        import torch.distributed as dist

        if not dist.is_initialized():
            # Most likely all found the same mistake, such as a wrong recipe.
            if _rank() > 0:
                time.sleep(GRACE_SECONDS)
            raise
        if not _lost_connection(error):
            if not _is_first():
                sys.exit(1)
            _let_others_end(dist.get_backend(), dist.get_world_size())
            raise
        # It follows from another one's failure, which is the one to tell.
        deadline = time.monotonic() + GRACE_SECONDS
        while not (told := _was_told()) and time.monotonic() < deadline:
            time.sleep(0.1)
        # The process that told ends with this call, maybe before the answer is here.
        first = _is_first()
        if told or not first:
            sys.exit(1)
        raise ConnectionError(_explain(error, remedy)) from error


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _lost_connection(error: Exception) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in _LOST_CONNECTION)
    )


def _explain(error: Exception, remedy: str) -> str:
    reason = str(error).partition("\n")[0]
    what = "lost the connection to another one, which was killed or ended without a message"
    if "timed out" in reason.lower() or "timeout" in reason:
        what = "waited in vain for another one, which hangs"
    return f"process {_rank()} {what}; {remedy}: {reason}"


def _is_first() -> bool:
    """Whether no other process has asked this before."""
    try:
        return _store().add(_TOLD, 1) == 1
    except RuntimeError:  # the process that kept the store is gone
        return True


def _let_others_end(backend: str, count: int) -> None:
    """Without `torchrun`, the first process keeps the store by which the others learn who told."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if agent or _rank() > 0 or backend != "gloo":
        return
    store = _store()
    _close_connections(but_to=int(os.environ["MASTER_PORT"]))
    deadline = time.monotonic() + STORE_SECONDS
    while time.monotonic() < deadline and store.add(_TOLD, 0) < count:
        time.sleep(0.05)


def _close_connections(but_to: int) -> None:
    """Close what gloo has open, so that whoever waits for this process notices.

    It does that itself only when the process ends, also where its groups are destroyed or aborted.
    """
    import psutil

    for connection in psutil.Process().net_connections("tcp"):
        established = connection.status == psutil.CONN_ESTABLISHED and connection.fd >= 0
        if established and but_to not in (connection.laddr.port, connection.raddr.port):
            # gloo closes others itself when it notices the first.
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as own:
                own.shutdown(socket.SHUT_RDWR)


def _was_told() -> bool:
    try:
        return _store().check([_TOLD])
    except RuntimeError:
        return False


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()
