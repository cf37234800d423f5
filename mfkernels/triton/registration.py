"""Serve operators on CUDA tensors with the Triton kernels of this folder."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from mfkernels.ops.common import operator_checks

OPERATORS = {
    "matching_cost": "matching_cost.triton_kernels",
    "mask_loss": "mask_loss.triton_launch",
    "mask_loss_backward": "mask_loss.triton_launch",
    "focal_dice": "focal_dice.triton_kernels",
    "focal_dice_backward": "focal_dice.triton_kernels",
    "sigmoid_focal_loss": "focal_dice.triton_kernels",
    "sigmoid_focal_loss_backward": "focal_dice.triton_kernels",
    "semantic_segmentation": "segmentation.triton_kernels",
    "panoptic_owners": "segmentation.triton_kernels",
    "class_loss": "class_loss.triton_kernels",
    "class_loss_backward": "class_loss.triton_kernels",
}
"""Each operator, and the file that has a function of its name."""

SCHEMAS = (
    """class_loss(Tensor class_logits, Tensor labels, Tensor counts, Tensor assignment,
    float no_object_weight) -> (Tensor loss, Tensor weight, Tensor normalizer, Tensor target)""",
    """class_loss_backward(Tensor grad_loss, Tensor class_logits, Tensor normalizer, Tensor target,
    float no_object_weight) -> Tensor""",
)
"""Operators that only Triton serves: what the C++ library does not define."""

_libraries: list[torch.library.Library] = []


def register() -> str | None:
    """Register every operator once, or say why none can be. Imports no kernel."""
    problem = _problem()
    if problem is None and not _libraries:
        library = torch.library.Library("mfkernels", "FRAGMENT")
        _libraries.append(library)
        for schema in SCHEMAS:
            library.define(schema)
        for operator, file in OPERATORS.items():
            library.impl(operator, _imported_on_first_call(operator, file), "CUDA")
    return problem


def _problem() -> str | None:
    if torch.version.cuda is None:
        return "PyTorch is built without CUDA"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    ours = {schema.split("(")[0] for schema in SCHEMAS}
    missing = [name for name in OPERATORS.keys() - ours if not hasattr(torch.ops.mfkernels, name)]
    return f"the cpu library does not define {', '.join(sorted(missing))}" if missing else None


def _imported_on_first_call(operator: str, file: str) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        getattr(operator_checks, operator)(*arguments)
        return getattr(importlib.import_module(f"mfkernels.ops.{file}"), operator)(*arguments)

    return kernel
