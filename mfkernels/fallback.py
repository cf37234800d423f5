"""Run a call in plain PyTorch if its kernel cannot be compiled or launched on the GPU.

On an untested GPU, a kernel may need more shared memory than there is, may not have been built for
it, or may not compile with Triton; or Triton's cache is read-only. Under ``auto``, such a failure
is logged once, and from then on the operation runs in plain PyTorch on that device. Under
``native``, it raises an error, except in the backward pass on a GPU, because autograd's threads do
not see the setting. Code compiled by `torch.compile` calls the kernels without this fallback: run
one step without `torch.compile` first to find the kernels that fail.
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
"""Called before each call, to test a kernel before its first use. `mfkernels.selfcheck.first_use`
sets it, because it imports the operations, which import this module."""

_logger = logging.getLogger(__name__)
_NO_IMAGE = "no kernel image is available"  # CUDA's own words
_CACHE = "set TRITON_CACHE_DIR to a writable folder with free space"
REMEDIES = {
    _NO_IMAGE: "install mfkernels again on this machine, or build it with TORCH_CUDA_ARCH_LIST set "
    "to the compute capability of this GPU",
    "Cannot find ptxas": "install Triton again, or set TRITON_PTXAS_PATH to the ptxas of a CUDA "
    "toolkit",
    "No space left": _CACHE,
    "Read-only": _CACHE,
    "PermissionError": _CACHE,
    "failed to map segment": _CACHE + ", on a file system that allows execution",
    "gcc": "install a C compiler, or set CC to one: Triton builds its launcher with it",
    "C compiler": "install one, or set CC to its path: Triton builds its launcher with it",
}
"""Text that an error message contains, and what the user can do about that error."""


class KernelError(RuntimeError):
    """A kernel cannot be compiled or launched; the message says why."""


def served_by_pytorch_where_kernels_fail(
    operation: str,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorate a function that calls `backend.select` for `operation`.

    If the kernel fails, the failure is recorded and the function is called again; `select` then
    chooses plain PyTorch.
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
                if not _is_kernel_failure(error):
                    raise
                tensors = (x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
                give_up(operation, next(tensors).device, error)
            return function(*args, **kwargs)

        return served

    return decorate


def give_up(operation: str, device: torch.device, error: RuntimeError) -> None:
    """Record that the kernel of an operation failed, so that plain PyTorch runs it on that device.

    Raises:
        BackendError: the setting is ``native``.
    """
    reason = f"its kernel failed on {_name_of(device)}: {str(error).strip().splitlines()[0]}"
    if requested() == "native":
        raise BackendError(
            f"{operation}: the native backend was requested, but {reason}. {_remedy(reason)}"
        ) from error
    failures[operation, device] = reason
    _logger.warning(
        "%s: %s. It runs in plain PyTorch there from now on. %s",
        operation,
        reason,
        _remedy(reason),
    )


def _remedy(reason: str) -> str:
    default = "run `python -m mfkernels check --json report.json`, which also finds other "
    default += "failures, and attach that file to a bug report"
    found = next((remedy for words, remedy in REMEDIES.items() if words in reason), default)
    return f"Remedy: {found}."


def _is_kernel_failure(error: RuntimeError) -> bool:
    return isinstance(error, KernelError) or _NO_IMAGE in str(error)


def _name_of(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})"
