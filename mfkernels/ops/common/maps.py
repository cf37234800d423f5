"""What the CPU kernels of layers accept: maps and parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from mfkernels.checks import has_autocast

CHANNELS = 16
"""The numbers of channels must be multiples of this."""
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
"""The dtypes of maps."""
HAS_VECTORS = torch.backends.cpu.get_cpu_capability().startswith("AVX")


def parameter_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of parameters for maps of this dtype, as kernels take them."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def parameter_dtypes(x: Tensor) -> tuple[torch.dtype, ...]:
    """Return the dtypes that callers may give parameters, of operations that follow autocast."""
    if _autocast(x) and x.dtype != torch.float64:
        return torch.float32, torch.bfloat16, torch.float16
    return tuple(dict.fromkeys((x.dtype, parameter_dtype(x.dtype))))


def check_parameter_dtype(name: str, values: Tensor, of: str, x: Tensor) -> None:
    """Check a parameter for maps `x`, whose name is `of`."""
    if values.dtype not in parameter_dtypes(x):
        wanted = " or ".join(map(str, parameter_dtypes(x)))
        raise TypeError(f"{name} must be {wanted} to match {of}, got {values.dtype}")


def dtype_under_autocast(x: Tensor) -> torch.dtype:
    """Return the dtype of maps as passed to operations that follow autocast."""
    if _autocast(x) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _autocast(x: Tensor) -> bool:
    return has_autocast(x.device.type) and torch.is_autocast_enabled(x.device.type)


def check_maps(dtype: torch.dtype, *channels: int) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"x must be float32, bfloat16 or float64, got {dtype}")
    for count in channels:
        if count < CHANNELS or count % CHANNELS:
            raise ValueError(f"channels must be a multiple of {CHANNELS}, got {count}")
