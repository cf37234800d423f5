"""A kernel that cannot be compiled or started on a GPU is no crash: plain PyTorch serves the call.

A GPU that nobody has tried may have too little shared memory for a kernel, no image of it, or a
Triton that cannot compile it; its cache may be read-only. Under ``auto`` that is said once, and the
operation is plain PyTorch's on that device from then on; under ``native`` it is an error (but for
gradients on a GPU, whose threads know no request). What `torch.compile` has compiled calls kernels
without this: a first step without it finds those that fail.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mfkernels.backend import BackendError, failures, requested
from mfkernels.torch_internals import is_transformed
from mfkernels.verification import verified

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

before_call: Callable[[str, tuple[Any, ...], dict[str, Any]], None] = lambda *_: None  # noqa: E731
"""Tries a kernel out before it serves its first call: `mfkernels.selfcheck.first_use`, which sets
this, stands above the operations."""

_logger = logging.getLogger(__name__)
_NO_IMAGE = "no kernel image is available"  # CUDA's own words
_CACHE = "name a folder with room that can be written in TRITON_CACHE_DIR"
REMEDIES = {
    _NO_IMAGE: "install mfkernels again on this machine, or where TORCH_CUDA_ARCH_LIST names the "
    "compute capability of this GPU",
    "Cannot find ptxas": "install Triton again, or name the ptxas of a CUDA toolkit in "
    "TRITON_PTXAS_PATH",
    "No space left": _CACHE,
    "Read-only": _CACHE,
    "PermissionError": _CACHE,
    "failed to map segment": _CACHE + ", where programs may be executed",
    "gcc": "install a C compiler, or name one in CC: Triton builds its launcher with it",
    "C compiler": "install one, or name it in CC: Triton builds its launcher with it",
}
"""What a person can do, by words of the reason."""


class KernelError(RuntimeError):
    """A kernel that cannot be compiled or started; the message says why."""


def served_by_pytorch_where_kernels_fail(
    operation: str,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorate a function that asks `backend.select` for `operation`: it is called again after a
    failure, and `select` remembers.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def served(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            if requested() == "verify" and not is_transformed():
                return verified(operation, lambda: served(*args, **kwargs))
            try:
                before_call(operation, args, kwargs)
                return function(*args, **kwargs)
            except RuntimeError as error:
                if not _is_of_a_kernel(error):
                    raise
                tensors = (x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
                give_up(operation, next(tensors).device, error)
            return function(*args, **kwargs)

        return served

    return decorate


def give_up(operation: str, device: torch.device, error: RuntimeError) -> None:
    """Let plain PyTorch serve an operation on a device because of this error.

    Raises:
        BackendError: native kernels were asked for.
    """
    reason = f"its kernel failed on {_name_of(device)}: {str(error).strip().splitlines()[0]}"
    if requested() == "native":
        raise BackendError(
            f"{operation}: the native backend was asked for, but {reason}. {_remedy(reason)}"
        ) from error
    failures[operation, device] = reason
    _logger.warning(
        "%s: %s. Plain PyTorch serves it there from now on. %s", operation, reason, _remedy(reason)
    )


def _remedy(reason: str) -> str:
    usual = "run `python -m mfkernels check --json report.json`, which tells what else fails, and "
    usual += "report it"
    found = next((remedy for words, remedy in REMEDIES.items() if words in reason), usual)
    return f"Remedy: {found}."


def _is_of_a_kernel(error: RuntimeError) -> bool:
    return isinstance(error, KernelError) or _NO_IMAGE in str(error)


def _name_of(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})"
