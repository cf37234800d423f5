"""What the machine computes fast."""

from __future__ import annotations

import torch

AMPERE = (8, 0)
"""The first GPUs that multiply in bfloat16."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 faster than in float32: GPUs of compute
    capability 8.0 or more, CPUs with AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    if device.type != "cpu":
        return False
    # Private in every version so far; one that lost them stays with float32.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)
