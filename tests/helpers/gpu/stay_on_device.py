"""A dispatch mode for tests with fake GPU tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class StayOnDevice(TorchDispatchMode):
    """Raises on operators that make the host wait for the device or copy a tensor from it."""

    waits = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten._unique2.default,
        torch.ops.aten.is_nonzero.default,
        torch.ops.aten.equal.default,
    )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.waits:
            raise AssertionError(f"{func} makes the host wait for the device")
        result = func(*args, **(kwargs or {}))
        given, made = (
            {x.device.type for x in tree_leaves(tree) if isinstance(x, Tensor)}
            for tree in ((args, kwargs), result)
        )
        if "cuda" in given and "cpu" in made:
            raise AssertionError(f"{func} copies from the device to the host")
        return result
