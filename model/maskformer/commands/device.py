"""The device given by `--device`, and the processes that share the work."""

from __future__ import annotations

import torch
import typer
from accelerate import PartialState

from maskformer.system.process_group import join_processes
from maskformer.system.processes import world_size


def choose_device(name: str | None) -> torch.device:
    """Return the named device; by default, the GPU if there is one.

    Raises:
        typer.BadParameter: the device cannot be used on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails on `meta`, whose tensors have no values
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"--device {name} cannot be used here: {reason}") from error
    return device


def choose_processes(name: str | None) -> tuple[torch.device, PartialState | None]:
    """Return the device of this process, and the process group if a launcher started several.

    Raises:
        typer.BadParameter: the device cannot be used on this machine, or a single device is given
            for several processes.
        UsageError: the processes cannot work together.
    """
    if world_size() == 1:
        return choose_device(name), None
    if name not in (None, "cpu", "cuda"):
        raise typer.BadParameter(
            f"--device {name} would be used by all processes: omit it, so that each gets its own"
        )
    processes = join_processes(cpu=name == "cpu")
    return processes.device, processes
