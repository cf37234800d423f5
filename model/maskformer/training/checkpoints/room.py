"""What a checkpoint needs, and whether the disk has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from maskformer.system.writing import check_space, free_bytes, megabytes
from maskformer.training.checkpoints.kept import superseded
from maskformer.training.run_folder import size_of


def weights_size(model: torch.nn.Module) -> int:
    """Bytes of a file with the model's weights."""
    return bytes_of(model.state_dict().values())


def checkpoint_size(model: torch.nn.Module, optimizer: Mapping[str, Any] | None = None) -> int:
    """Bytes of a checkpoint, of AdamW's two moments before it has any."""
    moments = [
        value
        for entry in (optimizer or {}).get("state", {}).values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    ] or [p for p in model.parameters() if p.requires_grad for _ in range(2)]
    return weights_size(model) + bytes_of(moments)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_room(run: Path, needed: int, *, overwrite: bool, keep: int = 1) -> str:
    """Refuses to train what could not be saved.

    Args:
        run: the run folder.
        needed: bytes of a checkpoint.
        overwrite: an earlier run in the folder will be removed.
        keep: how many of the newest checkpoints stay besides the best.

    Returns:
        A warning where there is room for fewer checkpoints than a run keeps, else "".

    Raises:
        DiskFullError: no room for one checkpoint.
    """
    folder = run / "checkpoints"
    free = free_bytes(run)
    if free is None:
        return ""
    held = sum(size_of(step) for step in folder.glob("step_*"))
    removable = held if overwrite else sum(map(size_of, superseded(folder)))
    purpose = "a checkpoint of this model"
    if free + removable < needed:
        check_space(run, needed, purpose)
    if free + held < (keep + 2) * needed:
        newest = "last" if keep == 1 else f"last {keep}"
        return (
            f"{purpose} needs {megabytes(needed)}, {megabytes(free)} are free: too little for the "
            f"best, the {newest} and a new one, so that the last is removed before a new one is "
            "written"
        )
    return ""
