"""The targets of the mask loss as its kernels read them."""

from __future__ import annotations

import pytest
import torch

from mfkernels.ops.mask_loss.triton_pixels_launch import _in_pairs


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8])
@pytest.mark.parametrize("own_memory", [False, True])
def test_pairs_of_pixels_are_aligned(dtype: torch.dtype, own_memory: bool) -> None:
    """Of targets that begin in the middle of a pair."""
    stored = torch.arange(2 * 4 + 1).to(dtype)
    segments = stored[1:].view(1, 2, 4)
    if not own_memory:  # as from another library, without an offset in PyTorch's storage
        memory = bytearray(stored.numpy().tobytes())
        segments = torch.frombuffer(memory, dtype=dtype, offset=dtype.itemsize).view(1, 2, 4)
    pairs = _in_pairs(segments)
    assert pairs.data_ptr() % (2 * dtype.itemsize) == 0
    assert torch.equal(pairs.view(dtype), segments)
