"""Register the Python part of `torch.ops.mfkernels`: checks, fakes, Triton kernels and gradients.

The C++ library defines the operators and their CPU kernels; without it, nothing is registered.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mfkernels import native
from mfkernels.checks import usable_by_autograd, without_autocast
from mfkernels.fallback import KernelError, give_up

Function = Callable[..., Any]

SERVED_BY_TRITON: list[str] = []
"""The operators that have Triton kernels for CUDA tensors."""

_library = torch.library.Library("mfkernels", "FRAGMENT")


def register(
    name: str,
    *,
    check: Function,
    fake: Function,
    triton: str | None = None,
    setup_context: Function | None = None,
    backward: Function | None = None,
) -> None:
    """Register the Python part of an operator that the C++ library defines.

    Args:
        name: its name under `torch.ops.mfkernels`.
        check: takes the operator's arguments, and raises an error if they are wrong.
        fake: the fake kernel, which returns empty results of the right shapes and dtypes.
        triton: the module that has the CUDA implementation, a function of this name.
        setup_context: saves what `backward` needs; see `torch.library.register_autograd`.
        backward: computes the gradient.
    """
    if not hasattr(torch.ops.mfkernels, name):
        return
    torch.library.register_fake(f"mfkernels::{name}", _checked(check, fake))
    if triton is not None and native.parts["triton"].usable:
        SERVED_BY_TRITON.append(name)
        _library.impl(name, _checked(check, _imported_once(triton, name)), "CUDA")
    if backward is not None:
        torch.library.register_autograd(f"mfkernels::{name}", backward, setup_context=setup_context)


def _checked(check: Function, function: Function) -> Function:
    def checked(*arguments: Any) -> Any:
        check(*arguments)
        return function(*arguments)

    return checked


def _imported_once(module: str, name: str) -> Function:
    """Import a module when its function is first called; importing mfkernels needs no Triton."""

    @functools.cache
    def launcher() -> Function:
        function: Function = getattr(importlib.import_module(module), name)
        return function

    return lambda *arguments: launcher()(*arguments)


def save(*outputs: int) -> Function:
    """Make a `setup_context` that saves these outputs and then all tensors among the inputs.

    Numbers among the inputs go to `ctx.options`.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        kinds = (bool, int, float, torch.SymInt)
        ctx.options = [value for value in inputs if isinstance(value, kinds)]
        tensors = [value for value in inputs if value is None or isinstance(value, Tensor)]
        tensors = [None if tensor is None else usable_by_autograd(tensor) for tensor in tensors]
        ctx.save_for_backward(*(output[index] for index in outputs), *tensors)
        if isinstance(output, tuple):  # the gradient of an unused output is None, not zeros
            ctx.set_materialize_grads(False)

    return setup_context


class _OnceSaved:
    """The context of a backward pass. Its saved tensors are read only once, as inside of activation
    checkpointing they can be read only once.
    """

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.saved_tensors: tuple[Tensor, ...] = ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def differentiable_again(operation: str, plain: Function) -> Callable[[Function], Function]:
    """Make the gradients of `backward(ctx, …)` differentiable if `create_graph=True`.

    They then come from `plain`, which computes the same with operators of PyTorch. It is also used
    if the backward kernel cannot be launched.

    Args:
        operation: a name from `mfkernels.backend.OPERATIONS`.
        plain: takes the inputs that `save` kept; returns the outputs that have a gradient.
    """

    def decorate(backward: Function) -> Function:
        @functools.wraps(backward)
        def either(ctx: Any, *gradients: Tensor | None) -> Any:
            create_graph = torch.is_grad_enabled()
            ctx = _OnceSaved(ctx)
            device = ctx.saved_tensors[0].device
            if not create_graph:
                try:
                    return backward(ctx, *gradients)
                except KernelError as error:
                    give_up(operation, device, error)
            inputs = (*ctx.saved_tensors, *ctx.options)[-len(ctx.needs_input_grad) :]
            # As in the forward pass, autocast must not lower the precision.
            with torch.enable_grad(), without_autocast(device):
                found = _gradients_of(plain, inputs, ctx.needs_input_grad, gradients)
            return found if create_graph else tuple(x if x is None else x.detach() for x in found)

        return either

    return decorate


def _gradients_of(
    plain: Function,
    inputs: Sequence[Any],
    needed: Sequence[bool],
    gradients: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    # Use views of the inputs: if one input was computed from another one, gradients must not flow
    # from the first to the second here; the autograd engine does that later.
    inputs = [x.view_as(x) if is_needed else x for x, is_needed in zip(inputs, needed, strict=True)]
    outputs = plain(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    used = [pair for pair in zip(outputs, gradients, strict=False) if pair[1] is not None]
    targets = [value for value, is_needed in zip(inputs, needed, strict=True) if is_needed]
    if not used:
        return (None,) * len(inputs)
    results, factors = zip(*used, strict=True)
    found = iter(torch.autograd.grad(results, targets, factors, create_graph=True))
    return tuple(next(found) if is_needed else None for is_needed in needed)


def or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
