"""The way of batches to the device."""

from __future__ import annotations

import torch

from maskformer.data import Batch
from maskformer.data.workers import tensors_of


class Transfer:
    """Copies batches to a device, on a GPU beside what it computes.

    The host launches a step long before the GPU has done the last one. In the stream of the
    computation its batch would be copied after that; in a stream of its own, meanwhile.

    Args:
        device: where the batches go; for a CPU there is nothing to do.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device, for the current stream."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in tensors_of(copied):  # their memory is free when `current` is done with them
            tensor.record_stream(current)
        return copied
