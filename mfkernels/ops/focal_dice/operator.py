"""The operators `focal_dice`, `point_loss` and `sigmoid_focal_loss` with their backward passes.

csrc/operator_schemas.cpp describes their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mfkernels.checks import check_focal, check_tensor, result_dtype
from mfkernels.ops.common.arguments import bool_if_it_is, check_argument, check_images
from mfkernels.ops.common.logits import at_least_float32
from mfkernels.ops.common.registration import (
    Function,
    differentiable_again,
    or_zeros,
    register,
    save,
)
from mfkernels.ops.focal_dice import reference

TRITON = "mfkernels.ops.focal_dice.triton_launch"


def check_focal_dice(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> None:
    _check_pair(logits, targets, ("M", "P"))
    check_focal(alpha, gamma)


def check_point_loss(
    logits: Tensor, targets: Tensor, points: Tensor, alpha: float, gamma: float
) -> None:
    check_images("logits", logits)
    count = logits.shape[0]
    check_argument("targets", targets, (count, "H", "W"), logits, bool_if_it_is(targets))
    check_images("targets", targets)
    check_argument("points", points, (count, "P", 2), logits, result_dtype(logits))
    check_focal(alpha, gamma)


def _check_pair(logits: Tensor, targets: Tensor, sizes: Sequence[int | str]) -> None:
    check_argument("logits", logits, sizes, logits)
    check_argument("targets", targets, logits.shape, logits, bool_if_it_is(targets))


def fake(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype = logits.shape[0], result_dtype(logits)
    focal, dice = (logits.new_empty(rows, dtype=dtype) for _ in range(2))
    return focal, dice, logits.new_empty((rows, 3), dtype=dtype)


def plain_focal_dice(
    logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    logits = at_least_float32(logits)
    return reference.focal_dice_loss(logits, targets.to(logits.dtype), alpha, gamma)


def plain_elements(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    precise = at_least_float32(logits)
    losses = reference.sigmoid_focal_loss(precise, targets.to(precise.dtype), alpha, gamma)
    return losses.to(logits.dtype)


def register_pair(name: str, check: Function, plain: Function, triton: str | None) -> None:
    """Register an operator that returns `focal`, `dice` and `sums`, and its backward pass."""

    def check_backward(
        grad_focal: Tensor, grad_dice: Tensor, sums: Tensor, logits: Tensor, *others: Any
    ) -> None:
        check(logits, *others)
        rows, dtype = logits.shape[0], result_dtype(logits)
        check_argument("grad_focal", grad_focal, (rows,), logits, dtype)
        check_argument("grad_dice", grad_dice, (rows,), logits, dtype)
        check_argument("sums", sums, (rows, 3), logits, dtype)

    def fake_backward(
        grad_focal: Tensor, grad_dice: Tensor, sums: Tensor, logits: Tensor, *others: Any
    ) -> Tensor:
        return logits.new_empty(logits.shape)

    @differentiable_again(name, plain)
    def backward(
        ctx: Any, grad_focal: Tensor | None, grad_dice: Tensor | None, _grad_sums: None
    ) -> tuple[Tensor | None, ...]:
        sums, *tensors = ctx.saved_tensors
        grad_logits = getattr(torch.ops.mfkernels, f"{name}_backward")(
            or_zeros(grad_focal, sums[:, 0]),
            or_zeros(grad_dice, sums[:, 0]),
            sums,
            *tensors,
            *ctx.options,
        )
        return (grad_logits, *[None] * (len(tensors) + 1))

    register(f"{name}_backward", check=check_backward, fake=fake_backward, triton=triton)
    register(name, check=check, fake=fake, triton=triton, setup_context=save(2), backward=backward)


def check_elements(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> None:
    check_tensor("logits", logits)
    _check_pair(logits, targets, logits.shape)
    check_focal(alpha, gamma)


def check_elements_backward(grad_losses: Tensor, logits: Tensor, *others: Any) -> None:
    check_elements(logits, *others)
    check_argument("grad_losses", grad_losses, logits.shape, logits, logits.dtype)


def fake_elements(logits: Tensor, *others: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def fake_elements_backward(grad_losses: Tensor, logits: Tensor, *others: Any) -> Tensor:
    return logits.new_empty(logits.shape)


@differentiable_again("focal_dice", plain_elements)
def backward_elements(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
    grad_logits = torch.ops.mfkernels.sigmoid_focal_loss_backward(
        grad_losses, *ctx.saved_tensors, *ctx.options
    )
    return grad_logits, None, None, None


register_pair("focal_dice", check_focal_dice, plain_focal_dice, triton=TRITON)
register_pair("point_loss", check_point_loss, reference.gathered_point_loss, triton=None)
register(
    "sigmoid_focal_loss_backward",
    check=check_elements_backward,
    fake=fake_elements_backward,
    triton=TRITON,
)
register(
    "sigmoid_focal_loss",
    check=check_elements,
    fake=fake_elements,
    triton=TRITON,
    setup_context=save(),
    backward=backward_elements,
)
