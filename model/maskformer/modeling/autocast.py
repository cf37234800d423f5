"""Half-precision inference and training through autocast inside `forward`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.outputs import Outputs, as_outputs

HALF_DTYPES = (torch.bfloat16, torch.float16)


def enable_autocast(
    model: SegmentationModel,
    dtype: torch.dtype,
    *,
    memory_format: torch.memory_format = torch.preserve_format,
    float32_outputs: bool = False,
) -> None:
    """Make `model.forward` run under autocast. A deep copy of the model uses its own weights.

    Args:
        dtype: the half-precision dtype of autocast.
        memory_format: the memory format to which input images are converted.
        float32_outputs: whether half-precision outputs are converted to float32.
    """
    model.forward = partial(_forward, model, dtype, memory_format, float32_outputs)


def _forward(
    model: SegmentationModel,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    float32_outputs: bool,
    pixel_values: Tensor,
    *args: Any,
    **options: Any,
) -> Outputs:
    pixel_values = pixel_values.to(memory_format=memory_format)
    with torch.autocast(pixel_values.device.type, dtype):
        outputs: Outputs = type(model).forward(model, pixel_values, *args, **options)
    return in_float32(outputs) if float32_outputs else outputs


def in_float32(outputs: Outputs) -> Outputs:
    """Convert the half-precision tensors of `outputs` to float32."""
    return as_outputs(
        {name: x.float() if x.dtype in HALF_DTYPES else x for name, x in outputs.items()}
    )


def predict(model: SegmentationModel, pixel_values: Tensor) -> Outputs:
    """Run a model of any floating-point dtype on float32 images.

    Half-precision outputs are converted to float32.
    """
    dtype = next((x.dtype for x in model.parameters()), pixel_values.dtype)
    return in_float32(as_outputs(model(pixel_values.to(dtype))))
