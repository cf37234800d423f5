"""Transfer of batches to the device."""

from __future__ import annotations

import torch

from maskformer.data import Batch
from maskformer.data.workers import tensors_of


class Transfer:
    """Copies batches to a device; on a GPU, in a stream of its own, in parallel to computation.

    The host launches a step long before the GPU has finished the previous one. In the stream of
    the computation, the copy would have to wait for that.

    Args:
        device: the target of the copies. On a CPU, there is nothing to copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch on the device, ready for use in the current stream."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in tensors_of(copied):  # free their memory only when `current` has used them
            tensor.record_stream(current)
        return copied
