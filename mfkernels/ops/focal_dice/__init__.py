"""Sigmoid focal loss and dice loss of logits that are already there."""

from __future__ import annotations

import torch
from torch import Tensor

import mfkernels.ops.focal_dice.operator  # noqa: F401
from mfkernels import backend
from mfkernels.checks import (
    check_device,
    check_floating,
    check_focal,
    check_memory,
    check_num_masks,
    check_tensor,
    native_problem,
    result_dtype,
    usable_by_autograd,
    without_autocast,
)
from mfkernels.fallback import served_by_pytorch_where_kernels_fail
from mfkernels.ops.common.logits import at_least_float32
from mfkernels.ops.focal_dice import reference
from mfkernels.ops.focal_dice.reference import Number
from mfkernels.ops.focal_dice.torchvision import like_torchvision
from mfkernels.torch_internals import is_traced


@like_torchvision
def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: Number = 0.25,
    gamma: Number = 2.0,
    reduction: str = "none",
) -> Tensor:
    """Focal loss with `torchvision.ops.sigmoid_focal_loss`'s contract (Lin et al. 2017, eq. 5).

    `torch.jit.script` takes it too. Without an exponent (`gamma` 0) plain PyTorch serves it: with a
    negative `alpha` it is its cross-entropy to the last bit, at finite logits.

    Args:
        inputs: logits of any shape and floating-point dtype (half precision is computed in
            float32).
        targets: same shape, bool or numbers from 0 to 1.
        alpha: weight of the positives; negative: no weighting.
        gamma: exponent, at least 0. Both may be 0-dim tensors; where they need a gradient, plain
            PyTorch gives it.
        reduction: `"none"` (each element), `"mean"` or `"sum"`.

    Returns:
        In the dtype of `inputs`: its shape, or 0-dim when reduced. Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value does not fit.
    """
    logits = inputs
    _check_pair(logits, targets, alpha, gamma)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(
            f"Invalid reduction {reduction!r}: reduction must be 'none', 'mean' or 'sum'"
        )
    with without_autocast(logits.device):
        if reduction != "none" and logits.numel() and not _is_zero(gamma):
            loss = _focal_and_dice(logits.reshape(1, -1), targets.reshape(1, -1), alpha, gamma)[0]
            loss = loss.sum() if reduction == "mean" else loss.sum() * logits.numel()
        else:
            loss = _focal_of_elements(logits, targets, alpha, gamma)
            if reduction != "none":
                loss = loss.mean() if reduction == "mean" else loss.sum()
    return loss.to(logits.dtype)


def dice_loss(logits: Tensor, targets: Tensor, num_masks: float | Tensor | None = None) -> Tensor:
    """Dice loss, smoothed by +1 above and below, summed over masks and divided by `num_masks`.

    Args:
        logits: `[M, ...]`, any floating-point dtype.
        targets: same shape, bool or numbers from 0 to 1.
        num_masks: the divisor. None: M, at least 1.

    Returns:
        0-dim, float32 (float64 for float64 logits). Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape or device does not fit.
    """
    return focal_dice_loss(logits, targets, num_masks, alpha=-1.0, gamma=0.0)[1]


def focal_dice_loss(
    logits: Tensor,
    targets: Tensor,
    num_masks: float | Tensor | None = None,
    alpha: Number = 0.25,
    gamma: Number = 2.0,
) -> tuple[Tensor, Tensor]:
    """The two mask losses of the official criterion, for logits at the size of the targets.

    The focal loss is a mean over the elements of each mask; both are summed over masks and divided
    by `num_masks`. Points that are sampled already go through here as `[M, P]`; see `point_loss`.

    Args:
        logits: `[M, ...]`, any floating-point dtype.
        targets: same shape, bool or numbers from 0 to 1.
        num_masks: the divisor. None: M, at least 1.
        alpha: weight of the positives in the focal loss; negative: no weighting.
        gamma: exponent of the focal loss, at least 0.

    Returns:
        `loss_mask` and `loss_dice`, 0-dim, float32 (float64 for float64 logits).
        Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value does not fit.
    """
    _check_pair(logits, targets, alpha, gamma)
    if logits.ndim < 2 or 0 in logits.shape[1:]:
        raise ValueError(
            f"logits must be [M, ...] with at least one element per mask, got {list(logits.shape)}"
        )
    with without_autocast(logits.device):
        focal, dice = _focal_and_dice(logits.flatten(1), targets.flatten(1), alpha, gamma)
        return _summed(focal, dice, num_masks)


def point_loss(
    logits: Tensor,
    targets: Tensor,
    points: Tensor,
    num_masks: float | Tensor | None = None,
    alpha: Number = -1.0,
    gamma: Number = 0.0,
) -> tuple[Tensor, Tensor]:
    """`focal_dice_loss` at sampled points of masks (Mask2Former, §3.3), sampling included.

    Logits and targets, which may differ in size, are read bilinearly, with zeros beyond the edge,
    as `F.grid_sample(align_corners=False)` does. The defaults make the focal loss plain binary
    cross-entropy. Only logits have a gradient.

    Args:
        logits: `[M, h, w]`, any floating-point dtype.
        targets: `[M, H, W]`, bool or numbers from 0 to 1.
        points: `[M, P, 2]` floating-point: x and y, 0 to 1 from edge to edge of the image.
        num_masks, alpha, gamma: as in `focal_dice_loss`.

    Returns:
        As `focal_dice_loss`.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value does not fit.
    """
    check_floating("logits", logits)
    check_floating("points", points)
    check_tensor("targets", targets)
    for name, images in (("logits", logits), ("targets", targets)):
        if images.ndim != 3 or 0 in images.shape[1:]:
            raise ValueError(f"{name} must be [M, height, width], got {list(images.shape)}")
        check_memory(name, images)
    count = logits.shape[0]
    if len(targets) != count:
        raise ValueError(f"targets must hold {count} masks like logits, got {len(targets)}")
    if points.ndim != 3 or points.shape[0] != count or points.shape[1] < 1 or points.shape[2] != 2:
        raise ValueError(
            f"points must be [{count}, P, 2] with at least one point, got {list(points.shape)}"
        )
    check_device("targets", targets, logits.device)
    check_device("points", points, logits.device)
    check_focal(alpha, gamma, learnable=True)
    with without_autocast(logits.device):
        targets = usable_by_autograd(targets.detach())
        points = usable_by_autograd(points.detach()).to(result_dtype(logits))
        problem = _problem(logits, None, alpha, gamma)
        if backend.select("point_loss", logits.device, problem) == "native":
            focal, dice, _ = torch.ops.mfkernels.point_loss(
                logits, _readable(targets, logits), points, float(alpha), float(gamma)
            )
        else:
            values = reference.sample_pair(logits, targets, points)
            focal, dice = _focal_and_dice(*values, alpha, gamma)
        return _summed(focal, dice, num_masks)


@served_by_pytorch_where_kernels_fail("focal_dice")
def _focal_of_elements(logits: Tensor, targets: Tensor, alpha: Number, gamma: Number) -> Tensor:
    """The focal loss of each element, of at least float32 or in the dtype of `logits`."""
    targets = usable_by_autograd(targets)
    problem = _problem(logits, targets, alpha, gamma)
    if backend.select("focal_dice", logits.device, problem) == "native" and not _is_zero(gamma):
        values = _readable(targets, logits)
        losses: Tensor = torch.ops.mfkernels.sigmoid_focal_loss(
            logits, values, float(alpha), float(gamma)
        )
        return losses
    precise = at_least_float32(logits)
    return reference.sigmoid_focal_loss(precise, targets.to(precise.dtype), alpha, gamma)


@served_by_pytorch_where_kernels_fail("focal_dice")
def _focal_and_dice(
    logits: Tensor, targets: Tensor, alpha: Number, gamma: Number
) -> tuple[Tensor, Tensor]:
    """`[M]` and `[M]` from `[M, P]`, P > 0."""
    targets = usable_by_autograd(targets)
    problem = _problem(logits, targets, alpha, gamma)
    if backend.select("focal_dice", logits.device, problem) == "native":
        values = _readable(targets, logits)
        focal, dice, _ = torch.ops.mfkernels.focal_dice(logits, values, float(alpha), float(gamma))
        return focal, dice
    precise = at_least_float32(logits)
    return reference.focal_dice_loss(precise, targets.to(precise.dtype), alpha, gamma)


def _summed(focal: Tensor, dice: Tensor, num_masks: float | Tensor | None) -> tuple[Tensor, Tensor]:
    if num_masks is not None:
        check_num_masks(num_masks)
    divisor = max(len(focal), 1) if num_masks is None else num_masks
    if isinstance(divisor, Tensor):
        divisor = usable_by_autograd(divisor)
    return focal.sum() / divisor, dice.sum() / divisor


def _problem(logits: Tensor, targets: Tensor | None, alpha: Number, gamma: Number) -> str | None:
    """Why the native kernels cannot serve this call, or None."""
    if torch.is_grad_enabled():
        given = (("the targets need", targets), ("alpha needs", alpha), ("gamma needs", gamma))
        for what, value in given:
            if isinstance(value, Tensor) and value.requires_grad:
                return f"{what} a gradient, which only plain PyTorch gives"
    if any(isinstance(value, Tensor) and is_traced(value) for value in (alpha, gamma)):
        return "alpha or gamma is a tensor whose value cannot be read while it is traced"
    return native_problem(logits)


def _is_zero(gamma: Number) -> bool:
    """Whether the loss is plain cross-entropy; a tensor is not looked into."""
    return not isinstance(gamma, Tensor) and gamma == 0


def _readable(targets: Tensor, logits: Tensor) -> Tensor:
    """Targets in a dtype that the kernels read."""
    if targets.dtype in (torch.bool, torch.float32, torch.bfloat16, torch.float16):
        return targets
    return targets.to(result_dtype(logits))


def _check_pair(logits: Tensor, targets: Tensor, alpha: Number, gamma: Number) -> None:
    check_floating("logits", logits)
    check_tensor("targets", targets)
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets must have the shape of logits, {list(logits.shape)}, "
            f"got {list(targets.shape)}"
        )
    check_device("targets", targets, logits.device)
    check_focal(alpha, gamma, learnable=True)
