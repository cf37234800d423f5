"""Sigmoid focal loss and dice loss of logits that are already there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mfkernels import backend
from mfkernels.checks import (
    check_device,
    check_floating,
    check_focal,
    check_tensor,
    native_problem,
    result_dtype,
)
from mfkernels.ops.common import operator_checks
from mfkernels.ops.focal_dice import reference
from mfkernels.ops.mask_logits.reference import at_least_float32
from mfkernels.ops.sample_points.reference import sample_points


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
) -> Tensor:
    """Focal loss with `torchvision.ops.sigmoid_focal_loss`'s contract (Lin et al. 2017, eq. 5).

    Args:
        logits: any shape, any floating-point dtype (half precision is computed in float32).
        targets: same shape, bool or numbers from 0 to 1.
        alpha: weight of the positives; negative: no weighting.
        gamma: exponent, at least 0.
        reduction: `"none"` (each element), `"mean"` or `"sum"`.

    Returns:
        In the dtype of `logits`: its shape, or 0-dim when reduced. Differentiable once.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value does not fit.
    """
    _check_pair(logits, targets, alpha, gamma)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    with torch.autocast(logits.device.type, enabled=False):
        if reduction != "none" and logits.numel():
            loss = _focal_and_dice(logits.reshape(1, -1), targets.reshape(1, -1), alpha, gamma)[0]
            loss = loss.sum() if reduction == "mean" else loss.sum() * logits.numel()
        else:
            loss = _each_focal(logits, targets, alpha, gamma)
            if reduction != "none":  # of nothing
                loss = loss.mean() if reduction == "mean" else loss.sum()
    return loss.to(logits.dtype)


def dice_loss(logits: Tensor, targets: Tensor, num_masks: float | Tensor | None = None) -> Tensor:
    """Dice loss, smoothed by +1 above and below, summed over masks and divided by `num_masks`.

    Args:
        logits: `[M, ...]`, any floating-point dtype.
        targets: same shape, bool or numbers from 0 to 1.
        num_masks: the divisor. None: M, at least 1.

    Returns:
        0-dim, float32 (float64 for float64 logits). Differentiable once.

    Raises:
        TypeError, ValueError: a dtype, shape or device does not fit.
    """
    return focal_dice_loss(logits, targets, num_masks, alpha=-1.0, gamma=0.0)[1]


def focal_dice_loss(
    logits: Tensor,
    targets: Tensor,
    num_masks: float | Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
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
        `loss_mask` and `loss_dice`, 0-dim, float32 (float64 for float64 logits). Differentiable
        once.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value does not fit.
    """
    _check_pair(logits, targets, alpha, gamma)
    if logits.ndim < 2 or 0 in logits.shape[1:]:
        raise ValueError(
            f"logits must be [M, ...] with at least one element a mask, got {list(logits.shape)}"
        )
    with torch.autocast(logits.device.type, enabled=False):
        focal, dice = _focal_and_dice(logits.flatten(1), targets.flatten(1), alpha, gamma)
        return _summed(focal, dice, num_masks)


def point_loss(
    logits: Tensor,
    targets: Tensor,
    points: Tensor,
    num_masks: float | Tensor | None = None,
    alpha: float = -1.0,
    gamma: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`focal_dice_loss` at sampled points of masks (Mask2Former, §3.3), sampling included.

    Logits and targets, which may differ in size, are read bilinearly, with zeros beyond the edge,
    as `F.grid_sample(align_corners=False)` does. The defaults make the focal loss plain binary
    cross-entropy. Only logits have a gradient.

    Args:
        logits: `[M, h, w]`, any floating-point dtype.
        targets: `[M, H, W]`, bool or numbers from 0 to 1.
        points: `[M, P, 2]` floating-point: x and y, 0 to 1 from edge to edge of the image.
        num_masks: the divisor. None: M, at least 1.
        alpha: weight of the positives in the focal loss; negative: no weighting.
        gamma: exponent of the focal loss, at least 0.

    Returns:
        `loss_mask` and `loss_dice`, 0-dim, float32 (float64 for float64 logits). Differentiable
        once.

    Raises:
        TypeError, ValueError: a dtype, shape, device or value does not fit.
    """
    check_floating("logits", logits)
    check_floating("points", points)
    check_tensor("targets", targets)
    for name, images in (("logits", logits), ("targets", targets)):
        if images.ndim != 3 or 0 in images.shape[1:]:
            raise ValueError(f"{name} must be [M, height, width], got {list(images.shape)}")
        operator_checks.check_memory(name, images)
    masks = logits.shape[0]
    if len(targets) != masks:
        raise ValueError(f"targets must hold {masks} masks like logits, got {len(targets)}")
    if points.ndim != 3 or points.shape[0] != masks or points.shape[1] < 1 or points.shape[2] != 2:
        raise ValueError(
            f"points must be [{masks}, P, 2] with at least one point, got {list(points.shape)}"
        )
    check_device("targets", targets, logits.device)
    check_device("points", points, logits.device)
    check_focal(alpha, gamma)
    with torch.autocast(logits.device.type, enabled=False):
        targets, points = targets.detach(), points.detach().to(result_dtype(logits))
        chosen = backend.select("focal_dice", logits.device, native_problem(logits))
        if chosen == "native" and not logits.is_cuda:
            focal, dice, _ = torch.ops.mfkernels.point_loss(
                logits, _values(targets, logits), points, alpha, gamma
            )
        else:
            x = sample_points(at_least_float32(logits), points)
            y = sample_points(targets.to(x.dtype), points)
            focal, dice = _focal_and_dice(x, y, alpha, gamma)
        return _summed(focal, dice, num_masks)


def _each_focal(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """The focal loss of each element, of at least float32 or in the dtype of `logits`."""
    if backend.select("focal_dice", logits.device, _problem(logits, targets)) == "native":
        values = _values(targets, logits)
        losses: Tensor = torch.ops.mfkernels.sigmoid_focal_loss(logits, values, alpha, gamma)
        return losses
    wide = at_least_float32(logits)
    return reference.sigmoid_focal_loss(wide, targets.to(wide.dtype), alpha, gamma)


def _focal_and_dice(
    logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """`[M]` and `[M]` from `[M, P]`, P > 0."""
    if backend.select("focal_dice", logits.device, _problem(logits, targets)) == "native":
        values = _values(targets, logits)
        focal, dice, _ = torch.ops.mfkernels.focal_dice(logits, values, alpha, gamma)
        return focal, dice
    wide = at_least_float32(logits)
    return reference.focal_dice_loss(wide, targets.to(wide.dtype), alpha, gamma)


def _summed(focal: Tensor, dice: Tensor, num_masks: float | Tensor | None) -> tuple[Tensor, Tensor]:
    divisor = max(len(focal), 1) if num_masks is None else num_masks
    return focal.sum() / divisor, dice.sum() / divisor


def _problem(logits: Tensor, targets: Tensor) -> str | None:
    """Why the native kernels cannot serve this pair, or None."""
    if targets.requires_grad and torch.is_grad_enabled():
        return "the targets need a gradient, which only plain PyTorch gives"
    return native_problem(logits)


def _values(targets: Tensor, logits: Tensor) -> Tensor:
    """Targets in a dtype that the kernels read."""
    if targets.dtype in (torch.bool, torch.float32, torch.bfloat16, torch.float16):
        return targets
    return targets.to(result_dtype(logits))


def _check_pair(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> None:
    check_floating("logits", logits)
    check_tensor("targets", targets)
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets must have the shape of logits, {list(logits.shape)}, "
            f"got {list(targets.shape)}"
        )
    check_device("targets", targets, logits.device)
    check_focal(alpha, gamma)


def _fake_of(name: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    check = getattr(operator_checks, name)

    def fake(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
        check(logits, *others)
        rows, dtype = logits.shape[0], result_dtype(logits)
        focal, dice = (logits.new_empty(rows, dtype=dtype) for _ in range(2))
        return focal, dice, logits.new_empty((rows, 3), dtype=dtype)

    return fake


def _fake_backward_of(name: str) -> Callable[..., Tensor]:
    check = getattr(operator_checks, f"{name}_backward")

    def fake(
        grad_focal: Tensor, grad_dice: Tensor, sums: Tensor, logits: Tensor, *others: Any
    ) -> Tensor:
        check(grad_focal, grad_dice, sums, logits, *others)
        return logits.new_empty(logits.shape)

    return fake


def _fake_each(logits: Tensor, *others: Any) -> Tensor:
    operator_checks.sigmoid_focal_loss(logits, *others)
    return logits.new_empty(logits.shape)


def _fake_each_backward(grad_losses: Tensor, logits: Tensor, *others: Any) -> Tensor:
    operator_checks.sigmoid_focal_loss_backward(grad_losses, logits, *others)
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)


def _setup_context_each(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(*tensors)


def _once(name: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name} can be differentiated only once (create_graph=True)")


def _backward_of(name: str) -> Callable[..., tuple[Any, ...]]:
    def backward(
        ctx: Any, grad_focal: Tensor | None, grad_dice: Tensor | None, _: Tensor | None
    ) -> tuple[Any, ...]:
        _once(name)
        sums, *tensors = ctx.saved_tensors
        zeros = torch.zeros_like(sums[:, 0])
        grad_logits = getattr(torch.ops.mfkernels, f"{name}_backward")(
            zeros if grad_focal is None else grad_focal,
            zeros if grad_dice is None else grad_dice,
            sums,
            *tensors,
            ctx.alpha,
            ctx.gamma,
        )
        return (grad_logits, *[None] * (len(tensors) + 1))

    return backward


def _backward_each(ctx: Any, grad_losses: Tensor) -> tuple[Any, ...]:
    _once("sigmoid_focal_loss")
    grad_logits = torch.ops.mfkernels.sigmoid_focal_loss_backward(
        grad_losses, *ctx.saved_tensors, ctx.alpha, ctx.gamma
    )
    return grad_logits, None, None, None


if hasattr(torch.ops.mfkernels, "focal_dice"):
    for _name in ("focal_dice", "point_loss"):
        torch.library.register_fake(f"mfkernels::{_name}", _fake_of(_name))
        torch.library.register_fake(f"mfkernels::{_name}_backward", _fake_backward_of(_name))
        torch.library.register_autograd(
            f"mfkernels::{_name}", _backward_of(_name), setup_context=_setup_context
        )
    torch.library.register_fake("mfkernels::sigmoid_focal_loss", _fake_each)
    torch.library.register_fake("mfkernels::sigmoid_focal_loss_backward", _fake_each_backward)
    torch.library.register_autograd(
        "mfkernels::sigmoid_focal_loss", _backward_each, setup_context=_setup_context_each
    )
