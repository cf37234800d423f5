"""Query private functions of PyTorch, mainly to detect transforms and tracing.

Where a version of PyTorch lacks one of them, the corresponding question is answered with no.
"""

from __future__ import annotations

import importlib
import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def _found(module: str, name: str, otherwise: Any) -> Any:
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        return otherwise


_transformation = _found("torch", "_C._functorch.peek_interpreter_stack", lambda: None)
_is_wrapped = _found("torch", "_C._functorch.is_functorch_wrapped_tensor", lambda _: False)
_FORWARD_MODE = _found("torch.autograd", "forward_ad", None)
_dispatch_modes = _found("torch", "_C._len_torch_dispatch_stack", lambda: 0)
_dispatch_mode = _found("torch", "_C._get_dispatch_mode", lambda _: None)
_TRACING = _found("torch", "_C._TorchDispatchModeKey.PROXY", None)
_fake_mode = _found("torch._guards", "active_fake_mode", lambda: None)
_pytree: Any = _found("torch.utils", "_pytree", None)
_amx = _found("torch", "cpu._is_amx_tile_supported", lambda: False)
_FAKE: Any = _found("torch._subclasses.fake_tensor", "FakeTensor", ())


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more than its `forward`."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(
        getattr(module, kind) or getattr(nn.modules.module, f"_global{kind}") for kind in kinds
    )


def is_transformed() -> bool:
    """Whether the call is inside a `torch.func` transform or forward-mode differentiation."""
    if torch.compiler.is_compiling():
        return False
    return _transformation() is not None or getattr(_FORWARD_MODE, "_current_level", -1) >= 0


def is_observed() -> bool:
    """Whether a `TorchDispatchMode` is active, which sees every operator that runs."""
    return bool(_dispatch_modes())


def is_traced(tensor: Tensor) -> bool:
    """Whether a tensor is fake, wrapped by `torch.func`, or part of a graph being traced."""
    return (
        torch.compiler.is_compiling()
        or isinstance(tensor, _FAKE)
        or _fake_mode() is not None
        or (_TRACING is not None and _dispatch_mode(_TRACING) is not None)
        or _is_wrapped(tensor)
    )


def without_subclass(tensor: Tensor) -> Tensor:
    """Convert a tensor subclass that adds no data to a plain `Tensor`; return others unchanged."""
    is_wrapper = bool(is_traceable_wrapper_subclass(tensor))
    if type(tensor) is Tensor or is_traced(tensor) or is_wrapper:
        return tensor
    return tensor.as_subclass(Tensor)


def has_amx() -> bool:
    """Whether the CPU has matrix units (AMX), which PyTorch uses for products in bfloat16."""
    return bool(_amx())


def version_of(tensor: Tensor) -> int | None:
    """Return the tensor's version, a count of in-place changes.

    Return None for tensors made in inference mode, which does not count them.
    """
    return None if tensor.is_inference() else tensor._version


def register_mapping(kind: type[dict[str, Tensor]]) -> None:
    """Register a dict subclass as a pytree node.

    DistributedDataParallel, `torch.export` and `torch.func` then find the tensors in it.
    `kind(dict)` must make a new instance.
    """
    if _pytree is not None:
        _pytree.register_pytree_node(
            kind,
            lambda values: (list(values.values()), list(values)),
            lambda values, names: kind(dict(zip(names, values, strict=True))),
            serialized_type_name=f"{kind.__module__}.{kind.__name__}",
            flatten_with_keys_fn=lambda values: (
                [(_pytree.MappingKey(name), value) for name, value in values.items()],
                list(values),
            ),
        )
