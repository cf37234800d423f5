"""Hardware support for fast computation in bfloat16."""

from __future__ import annotations

import torch

AMPERE = (8, 0)
"""The compute capability of the first GPUs that support bfloat16."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices faster in bfloat16 than in float32. This holds for GPUs
    of compute capability 8.0 or higher, and for CPUs with AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    if device.type != "cpu":
        return False
    # These functions are private; if a future version does not have them, float32 is used.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)
