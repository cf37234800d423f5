"""The operators `class_loss` and `class_loss_backward`, which have Triton kernels only.

csrc/operator_schemas.cpp describes their arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfkernels.fallback import KernelError, give_up
from mfkernels.ops.common.arguments import check_argument
from mfkernels.ops.common.logits import at_least_float32
from mfkernels.ops.common.registration import register

TRITON = "mfkernels.ops.class_loss.triton_launch"


def check(
    class_logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    assignment: Tensor,
    no_object_weight: float,
) -> None:
    check_argument("class_logits", class_logits, ("L", "B", "Q", "K + 1"), class_logits)
    layers, images, _, classes = class_logits.shape
    if classes < 1:
        raise ValueError(f"class_logits must have classes, got {list(class_logits.shape)}")
    check_argument("labels", labels, ("N",), class_logits, torch.int64)
    check_argument("counts", counts, (images,), class_logits, torch.int64)
    check_argument("assignment", assignment, (layers, images, "T"), class_logits, torch.int64)


def check_backward(
    grad_loss: Tensor,
    class_logits: Tensor,
    normalizer: Tensor,
    target: Tensor,
    no_object_weight: float,
) -> None:
    check_argument("class_logits", class_logits, ("L", "B", "Q", "K + 1"), class_logits)
    *rows, _ = class_logits.shape
    check_argument("grad_loss", grad_loss, rows[:1], class_logits, torch.float32)
    check_argument("normalizer", normalizer, rows, class_logits, torch.float32)
    check_argument("target", target, rows, class_logits, torch.int32)


def fake(class_logits: Tensor, *others: Any) -> tuple[Tensor, ...]:
    layers, images, queries, _ = class_logits.shape
    loss, weight = (class_logits.new_empty(layers, dtype=torch.float32) for _ in range(2))
    rows = (layers, images, queries)
    normalizer = class_logits.new_empty(rows, dtype=torch.float32)
    return loss, weight, normalizer, class_logits.new_empty(rows, dtype=torch.int32)


def fake_backward(grad_loss: Tensor, class_logits: Tensor, *others: Any) -> Tensor:
    return class_logits.new_empty(class_logits.shape)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    class_logits, *_, ctx.no_object_weight = inputs
    _, weight, normalizer, target = output
    ctx.mark_non_differentiable(weight, normalizer, target)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(class_logits, normalizer, target)


def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    class_logits, normalizer, target = ctx.saved_tensors
    if not torch.is_grad_enabled():
        try:
            gradient = torch.ops.mfkernels.class_loss_backward(
                grad_loss, class_logits, normalizer, target, ctx.no_object_weight
            )
        except KernelError as error:
            give_up("class_loss", class_logits.device, error)
        else:
            return gradient, None, None, None, None
    gradient = plain_gradient(grad_loss, class_logits, target, ctx.no_object_weight)
    return gradient, None, None, None, None


def plain_gradient(
    grad_loss: Tensor, class_logits: Tensor, target: Tensor, no_object_weight: float
) -> Tensor:
    """The gradient in operators of PyTorch, so that it can be differentiated again."""
    classes = class_logits.shape[-1]
    weight = grad_loss[:, None, None].expand(target.shape)
    weight = weight.where(target != classes - 1, no_object_weight * weight)
    # Not `one_hot`, whose device-side assert makes the CUDA context unusable if an unchecked label
    # is out of range.
    is_target = target[..., None] == torch.arange(classes, device=target.device)
    difference = at_least_float32(class_logits).softmax(-1) - is_target.float()
    return (weight[..., None] * difference).to(class_logits.dtype)


register(
    "class_loss_backward",
    check=check_backward,
    fake=fake_backward,
    triton=TRITON,
)
register(
    "class_loss",
    check=check,
    fake=fake,
    triton=TRITON,
    setup_context=setup_context,
    backward=backward,
)
