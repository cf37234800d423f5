"""The size of a checkpoint, and whether there is enough disk space for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from maskformer.system.writing import check_space, free_bytes, megabytes
from maskformer.training.checkpoints.kept import superseded
from maskformer.training.run_folder import size_of
from maskformer.weights.locate import CHECKPOINTS, step_folders


def weights_size(model: torch.nn.Module) -> int:
    """Return the size in bytes of a file with the model's weights."""
    return bytes_of(model.state_dict().values())


def checkpoint_size(model: torch.nn.Module, optimizer: Mapping[str, Any] | None = None) -> int:
    """Return the size in bytes of a checkpoint. Before the first step, the optimizer has no
    moments yet, and the size of AdamW's two moments is assumed.
    """
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
    """Check that there is enough disk space to save checkpoints.

    Args:
        run: the run folder.
        needed: the size of a checkpoint in bytes.
        overwrite: whether an earlier run in the folder will be removed.
        keep: how many of the newest checkpoints are kept besides the best.

    Returns:
        A warning if there is space for fewer checkpoints than a run keeps, otherwise "".

    Raises:
        DiskFullError: there is not enough space for one checkpoint.
    """
    folder = run / CHECKPOINTS
    free = free_bytes(run)
    if free is None:
        return ""
    held = sum(size_of(step) for step in step_folders(folder))
    removable = held if overwrite else sum(map(size_of, superseded(folder)))
    purpose = "a checkpoint of this model"
    if free + removable < needed:
        check_space(run, needed, purpose)
    if free + held < (keep + 2) * needed:
        newest = "last" if keep == 1 else f"last {keep}"
        return (
            f"{purpose} needs {megabytes(needed)}, but only {megabytes(free)} are free, which is "
            f"too little for the best, the {newest} and a new one; the last one will be removed "
            "before a new one is written"
        )
    return ""
