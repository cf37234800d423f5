"""Serve operators on CUDA tensors with the Triton kernels of this folder."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from mfkernels import operator_checks

OPERATORS = {
    "matching_cost": "matching_cost",
    "mask_loss": "mask_loss",
    "mask_loss_backward": "mask_loss",
    "focal_dice": "focal_dice",
    "focal_dice_backward": "focal_dice",
    "sigmoid_focal_loss": "focal_dice",
    "sigmoid_focal_loss_backward": "focal_dice",
    "semantic_segmentation": "segmentation",
    "panoptic_owners": "segmentation",
    "class_loss": "class_loss",
    "class_loss_backward": "class_loss",
}
"""Each operator (csrc/torch_library.cpp holds the schemas), and the file with its function."""

_libraries: list[torch.library.Library] = []


def register() -> str | None:
    """Register every operator once, or say why none can be. Imports no kernel."""
    problem = _problem()
    if problem is None and not _libraries:
        library = torch.library.Library("mfkernels", "FRAGMENT")
        _libraries.append(library)
        for operator, file in OPERATORS.items():
            library.impl(operator, _imported_on_first_call(operator, file), "CUDA")
    return problem


def _problem() -> str | None:
    if torch.version.cuda is None:
        return "PyTorch is built without CUDA"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    missing = [name for name in OPERATORS if not hasattr(torch.ops.mfkernels, name)]
    return f"the cpu library does not define {', '.join(sorted(missing))}" if missing else None


def _imported_on_first_call(operator: str, file: str) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        getattr(operator_checks, operator)(*arguments)
        return getattr(importlib.import_module(f"mfkernels.triton.{file}"), operator)(*arguments)

    return kernel
