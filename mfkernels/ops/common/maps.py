"""What the CPU kernels of convolutions and norms accept: maps `[B, C, h, w]` and parameters."""

from __future__ import annotations

import torch

CHANNELS = 16
"""The numbers of channels must be multiples of this."""
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
"""The dtypes of maps."""
HAS_VECTORS = torch.backends.cpu.get_cpu_capability().startswith("AVX")


def parameter_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of weight and bias for maps of this dtype."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def check_maps(dtype: torch.dtype, *channels: int) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"x must be float32, bfloat16 or float64, got {dtype}")
    for count in channels:
        if count < CHANNELS or count % CHANNELS:
            raise ValueError(f"channels must be a multiple of {CHANNELS}, got {count}")
