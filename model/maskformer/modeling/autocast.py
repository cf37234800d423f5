"""Networks that compute in half precision by themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.outputs import Outputs, as_outputs

HALVES = (torch.bfloat16, torch.float16)


def compute_in(
    model: SegmentationModel,
    dtype: torch.dtype,
    *,
    layout: torch.memory_format = torch.preserve_format,
    widened: bool = False,
) -> None:
    """Has `forward` use autocast. Copies of the model do it with their own weights.

    Args:
        dtype: half precision.
        layout: of the images in memory.
        widened: the outputs come as float32 instead of half precision.
    """
    model.forward = partial(_forward, model, dtype, layout, widened)


def _forward(
    model: SegmentationModel,
    dtype: torch.dtype,
    layout: torch.memory_format,
    widened: bool,
    pixel_values: Tensor,
    *args: Any,
    **options: Any,
) -> Outputs:
    pixel_values = pixel_values.to(memory_format=layout)
    with torch.autocast(pixel_values.device.type, dtype):
        outputs: Outputs = type(model).forward(model, pixel_values, *args, **options)
    return in_float32(outputs) if widened else outputs


def in_float32(outputs: Outputs) -> Outputs:
    """What is in half precision, widened."""
    return as_outputs({name: x.float() if x.dtype in HALVES else x for name, x in outputs.items()})


def predict(model: SegmentationModel, pixel_values: Tensor) -> Outputs:
    """What a model says of images in float32, whatever its weights and its results are in."""
    dtype = next((x.dtype for x in model.parameters()), pixel_values.dtype)
    return in_float32(as_outputs(model(pixel_values.to(dtype))))
