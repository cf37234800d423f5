"""How the model of a training run is executed: precision, memory format and compilation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import nn

from maskformer.config.schema import TrainConfig
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.layout import prefers_channels_last
from maskformer.system.hardware import has_bfloat16

PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Accelerate's name of each precision."""
DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of autocast for each precision."""


def choose_precision(train: TrainConfig, device: torch.device) -> TrainConfig:
    """Replace `train.precision: auto` by the precision for a device."""
    if train.precision != "auto":
        return train
    chosen = "bf16" if has_bfloat16(device) else "fp32"
    return train.model_copy(update={"precision": chosen})


def choose_memory_format(train: TrainConfig, model: SegmentationModel) -> torch.memory_format:
    """Return the memory format of images, feature maps and convolution weights. For
    `train.memory_format: auto`, it depends on the backbone (see `prefers_channels_last`).
    """
    if train.memory_format == "auto":
        channels_last = prefers_channels_last(model)
    else:
        channels_last = train.memory_format == "channels_last"
    return torch.channels_last if channels_last else torch.contiguous_format


def compile_regions(model: SegmentationModel) -> None:
    """Mark each part of a model for separate compilation, which happens on first use.

    The criterion is left out: its operators are compiled kernels already, and the varying sizes of
    targets would cause recompilation.
    """
    for name, part in model.named_children():
        if name in ("backbone", "pixel_decoder", "decoder"):
            part.compile()


def uncompiled(train: TrainConfig) -> AbstractContextManager[object]:
    """Return a context in which the model runs uncompiled, for images of many sizes, such as in
    evaluations: each new size would be compiled for a few uses only.
    """
    return torch.compiler.set_stance("force_eager") if train.compile else nullcontext()


def is_sharded(train: TrainConfig, accelerator: Accelerator) -> bool:
    """Whether the model is sharded, which needs more than one process."""
    return train.shard and accelerator.num_processes > 1


def describe(accelerator: Accelerator, train: TrainConfig, layout: torch.memory_format) -> str:
    """Describe all settings and hardware that affect the speed of a run, for its log."""
    device = accelerator.device
    parts = [f"{accelerator.num_processes} x {_device_name(device)}", train.precision]
    parts.append(str(layout).removeprefix("torch."))
    if train.compile:
        parts.append("compiled")
    if is_sharded(train, accelerator):
        parts.append("sharded")
    if device.type == "cuda":
        parts.append(f"float32 products: {torch.get_float32_matmul_precision()}")
        parts.append(f"TF32 convolutions: {_on(torch.backends.cudnn.allow_tf32)}")
        parts.append(f"cudnn.benchmark: {_on(torch.backends.cudnn.benchmark)}")
    else:
        parts.append(f"{torch.get_num_threads()} threads")
        parts.append(f"oneDNN: {_on(torch.backends.mkldnn.is_available())}")
        parts.append(torch.backends.cpu.get_cpu_capability())
    return ", ".join(parts)


def convert_memory_format(model: nn.Module, layout: torch.memory_format) -> None:
    """Convert the convolution weights of a model to a memory format, in place."""
    if layout is not torch.contiguous_format:
        model.to(memory_format=layout)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _on(switch: bool) -> str:
    return "on" if switch else "off"
