"""Error reporting of several processes that work together: only one of them reports the cause."""

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
"""Time for which a process waits to be ended by its launcher, if another process probably reports
the same error or its cause.
"""
STORE_SECONDS = 60.0
"""Longest time for which the process that hosts the store waits until the others have read it."""
_REPORTED = "maskformer/failures"
_LOST_CONNECTION = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "timeout caused pair closure",  # gloo, for all operations except the one that timed out
    "Operation timed out",
)


@contextmanager
def report_first_failure(remedy: str) -> Iterator[None]:
    """Raise the error of the process that failed first; the other processes exit silently.

    This has no effect on a single process.

    Args:
        remedy: the advice if a process is lost.

    Raises:
        SystemExit: in place of an error whose cause another process has reported.
    """
    if world_size() > 1:
        # PyTorch, not imported yet, would warn about every connection that another process closes.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        yield
    except StoppedError as stop:  # all processes stop
        if _rank() > 0:
            sys.exit(stop.exit_code)
        raise
    except Exception as error:
        if world_size() == 1:
            raise
        import torch.distributed as dist

        if not dist.is_initialized():
            # Most likely, all processes have the same error, such as an invalid recipe.
            if _rank() > 0:
                time.sleep(GRACE_SECONDS)
            raise
        if not _lost_connection(error):
            if not _is_first():
                sys.exit(1)
            _let_others_end(dist.get_backend(), dist.get_world_size())
            raise
        # The error is a consequence of another process's failure, which is to be reported.
        deadline = time.monotonic() + GRACE_SECONDS
        while not (reported := _was_reported()) and time.monotonic() < deadline:
            time.sleep(0.1)
        # This call lets the reporting process end, possibly before its answer arrives.
        first = _is_first()
        if reported or not first:
            sys.exit(1)
        raise ConnectionError(_explain(error, remedy)) from error


def world_size() -> int:
    """Return the number of processes that a launcher such as `torchrun` has started; 1 without."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return how many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _lost_connection(error: Exception) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in _LOST_CONNECTION)
    )


def _explain(error: Exception, remedy: str) -> str:
    reason = str(error).partition("\n")[0]
    what = "lost the connection to another process, which was killed or ended without a message"
    if "timed out" in reason.lower() or "timeout" in reason:
        what = "timed out waiting for another process, which hangs"
    return f"process {_rank()} {what}; {remedy}: {reason}"


def _is_first() -> bool:
    """Whether no other process has called this before."""
    try:
        return _store().add(_REPORTED, 1) == 1
    except RuntimeError:  # the process that hosted the store has ended
        return True


def _let_others_end(backend: str, count: int) -> None:
    """Keep the store alive until all processes have read it. Without `torchrun`, the first process
    hosts the store.
    """
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if agent or _rank() > 0 or backend != "gloo":
        return
    store = _store()
    _close_connections(but_to=int(os.environ["MASTER_PORT"]))
    deadline = time.monotonic() + STORE_SECONDS
    while time.monotonic() < deadline and store.add(_REPORTED, 0) < count:
        time.sleep(0.05)


def _close_connections(but_to: int) -> None:
    """Close the connections of gloo, so that processes that wait for this one notice its failure.

    gloo itself closes them only when the process ends, even if its groups are destroyed or aborted.
    """
    import psutil

    for connection in psutil.Process().net_connections("tcp"):
        established = connection.status == psutil.CONN_ESTABLISHED and connection.fd >= 0
        if established and but_to not in (connection.laddr.port, connection.raddr.port):
            # When gloo notices that a connection is closed, it closes others itself.
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as own:
                own.shutdown(socket.SHUT_RDWR)


def _was_reported() -> bool:
    try:
        return _store().check([_REPORTED])
    except RuntimeError:
        return False


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()
