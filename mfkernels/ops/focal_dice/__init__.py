"""Sigmoid focal loss and dice loss of logits."""

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
    """Compute the focal loss, as `torchvision.ops.sigmoid_focal_loss` (Lin et al. 2017, eq. 5).

    `torch.jit.script` supports it. With `gamma` 0, plain PyTorch computes it; if `alpha` is also
    negative, the result is bit for bit PyTorch's binary cross-entropy, for finite logits.

    Args:
        inputs: logits of any shape and floating-point dtype; half precision is computed in float32.
        targets: same shape, bool or numbers from 0 to 1.
        alpha: weight of the positives, at most 1. Negative: no weighting.
        gamma: exponent, at least 0. `alpha` and `gamma` may be tensors of one element; if one of
            them or `targets` requires a gradient, plain PyTorch computes the loss.
        reduction: `"none"` (one loss per element), `"mean"` or `"sum"`.

    Returns:
        The losses in the shape and dtype of `inputs`, or 0-dim if reduced. Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value is wrong.
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
    """Compute the dice loss, summed over the masks and divided by `num_masks`.

    Each mask's loss is `1 − (2 Σ p·t + 1) / (Σ p + Σ t + 1)` with `p = sigmoid(logits)`.

    Args:
        logits: `[M, ...]`, any floating-point dtype; at least one element per mask.
        targets: same shape, bool or numbers from 0 to 1.
        num_masks: the divisor, positive, a number or a 0-dim tensor. None: M, at least 1.

    Returns:
        0-dim, float32 (float64 for float64 logits). Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value is wrong.
    """
    return focal_dice_loss(logits, targets, num_masks, alpha=-1.0, gamma=0.0)[1]


def focal_dice_loss(
    logits: Tensor,
    targets: Tensor,
    num_masks: float | Tensor | None = None,
    alpha: Number = 0.25,
    gamma: Number = 2.0,
) -> tuple[Tensor, Tensor]:
    """Compute the two mask losses of the official criterion, for logits at target size.

    The focal loss is a mean over the elements of each mask; for the dice loss, see `dice_loss`.
    Both are summed over the masks and divided by `num_masks`. Values already sampled at points can
    be passed as `[M, P]`; `point_loss` also samples them.

    Args:
        logits: `[M, ...]`, any floating-point dtype; at least one element per mask.
        targets: same shape, bool or numbers from 0 to 1.
        num_masks: the divisor, positive, a number or a 0-dim tensor. None: M, at least 1.
        alpha: weight of the positives in the focal loss, at most 1. Negative: no weighting.
        gamma: exponent of the focal loss, at least 0. `alpha` and `gamma` may be tensors of one
            element.

    Returns:
        `loss_mask` and `loss_dice`, 0-dim, float32 (float64 for float64 logits). Differentiable.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value is wrong.
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
    """Sample masks at points and compute `focal_dice_loss` there (Mask2Former, §3.3).

    Logits and targets, whose sizes may differ, are sampled bilinearly, with zeros beyond the edge,
    like `F.grid_sample(align_corners=False)`. With the default `alpha` and `gamma`, the focal loss
    is the binary cross-entropy.

    Args:
        logits: `[M, h, w]`, any floating-point dtype.
        targets: `[M, H, W]`, bool or numbers from 0 to 1.
        points: `[M, P, 2]`, any floating-point dtype. x and y are from 0 to 1, from edge to edge of
            the image.
        num_masks, alpha, gamma: as in `focal_dice_loss`.

    Returns:
        `loss_mask` and `loss_dice`, 0-dim, float32 (float64 for float64 logits). Differentiable
        with respect to `logits`, not to `targets` and `points`.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value is wrong.
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
    """The focal loss of each element.

    Kernels return it in the dtype of `logits`, plain PyTorch in at least float32.
    """
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
    """Focal and dice loss, each `[M]`, of the rows of `logits` and `targets [M, P]`, P > 0."""
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
    """Why the native kernels do not support this call, or None if they do."""
    if torch.is_grad_enabled():
        given = (("the targets need", targets), ("alpha needs", alpha), ("gamma needs", gamma))
        for what, value in given:
            if isinstance(value, Tensor) and value.requires_grad:
                return f"{what} a gradient, which only plain PyTorch computes"
    if any(isinstance(value, Tensor) and is_traced(value) for value in (alpha, gamma)):
        return "alpha or gamma is a tensor whose value cannot be read while it is traced"
    return native_problem(logits)


def _is_zero(gamma: Number) -> bool:
    """Whether the loss is plain cross-entropy; a tensor is not read, as that may synchronise."""
    return not isinstance(gamma, Tensor) and gamma == 0


def _readable(targets: Tensor, logits: Tensor) -> Tensor:
    """Convert targets to a dtype that the kernels accept, if theirs is not one."""
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
