"""The device that `--device` names."""

from __future__ import annotations

import torch
import typer


def choose_device(name: str | None) -> torch.device:
    """The named device, or the GPU if there is one.

    Raises:
        typer.BadParameter: it cannot be used here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"--device {name} cannot be used here: {reason}") from error
    return device
