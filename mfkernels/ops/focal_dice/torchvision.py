"""Compatibility of `sigmoid_focal_loss` with torchvision's: the keyword and `torch.jit.script`."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def like_torchvision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make `torch.jit.script` use `scriptable_focal_loss`; accept the old name of `inputs`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        if "logits" in kwargs and "inputs" not in kwargs:
            warnings.warn(
                "sigmoid_focal_loss: the argument logits is now called inputs, as in torchvision; "
                "the next release removes the name logits",
                FutureWarning,
                stacklevel=2,
            )
            kwargs["inputs"] = kwargs.pop("logits")
        return function(*args, **kwargs)

    # `torch.jit.script` calls this to get the function to compile.
    call.__prepare_scriptable__ = lambda: scriptable_focal_loss  # type: ignore[attr-defined]
    return call


def scriptable_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
) -> Tensor:
    """`mfkernels.sigmoid_focal_loss` written in TorchScript."""
    if gamma < 0.0 or alpha > 1.0:
        raise ValueError("gamma must be at least 0 and alpha at most 1")
    logits = inputs if inputs.dtype == torch.float64 else inputs.to(torch.float32)
    truth = targets.to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    if gamma > 0.0:
        probability = logits.sigmoid()
        base = probability * (1 - truth) + (1 - probability) * truth  # 1 - p_t
        # At least the smallest normal number: the derivative of base**gamma may be infinite at 0.
        loss = loss * base.clamp(min=2.0**-126) ** gamma
    if alpha >= 0.0:
        loss = (alpha * truth + (1 - alpha) * (1 - truth)) * loss
    if reduction == "mean":
        loss = loss.mean()
    elif reduction == "sum":
        loss = loss.sum()
    elif reduction != "none":
        raise ValueError("Invalid reduction: reduction must be 'none', 'mean' or 'sum'")
    return loss.to(inputs.dtype)
