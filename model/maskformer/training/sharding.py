"""Sharding of parameters, gradients and optimizer moments over the processes (FSDP2)."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.transformer import DecoderLayer, EncoderLayer

BLOCKS = (SwinTransformerBlock, EncoderLayer, DecoderLayer)
"""Modules that are sharded, and so gathered, one at a time; the rest of each child of the model
forms one more unit.
"""
WHOLE = StateDictOptions(full_state_dict=True)


class Shards:
    """A model whose parameters are sharded over the processes.

    It calls PyTorch's `fully_shard` directly, because accelerate does so on GPUs only.

    Args:
        model: the full model, as `Accelerator.prepare_model` returns it without a wrapper, the same
            in all processes. It is sharded in place, which replaces its parameters.
        device: the device of this process.
    """

    def __init__(self, model: SegmentationModel, device: torch.device) -> None:
        self._model = model
        self._template = _without_values(model)
        # Some blocks do return a view, which would be a problem only if they modified it in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        blocks = [part for part in model.modules() if isinstance(part, BLOCKS)]
        for part in (*blocks, *model.children(), model):  # inner modules first
            fully_shard(part, mesh=mesh)

    def whole_model(self) -> SegmentationModel:
        """Gather a full copy of the model on the device of each process, with the buffers of the
        first. Must be called by every process.
        """
        weights: dict[str, Any] = get_model_state_dict(self._model, options=WHOLE)
        for name, _ in self._model.named_buffers():
            if name in weights:
                distributed.broadcast(weights[name], 0)
        model = copy.deepcopy(self._template, _buffers_memo(self._template))
        model.load_state_dict(weights, assign=True)
        return model


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Gather the full `state_dict` of a sharded model's optimizer on the CPU.

    Must be called by every process; only the first gets the moments.
    """
    state = optimizer.state_dict()
    moments = {}
    for index, entry in state["state"].items():  # gathered one by one, because they are large
        gathered = {name: whole(value) for name, value in entry.items()}
        if distributed.get_rank() == 0:
            moments[index] = {name: value.cpu() for name, value in gathered.items()}
    return {**state, "state": moments}


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor from all processes; return any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Copy a full tensor with the dtype, device and memory format of a parameter. If that is
    sharded, the result is sharded in the same way.
    """
    if not isinstance(parameter, DTensor):
        return torch.empty_like(parameter).copy_(tensor)
    moved = tensor.to(parameter.device, parameter.dtype)
    mesh, placements = parameter.device_mesh, parameter.placements
    part: Tensor = distribute_tensor(moved, mesh, placements, src_data_rank=None)
    return part


def _without_values(model: SegmentationModel) -> SegmentationModel:
    """Copy a model with its parameters on the meta device; the copy shares the buffers."""
    shapes = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, {**shapes, **_buffers_memo(model)})


def _buffers_memo(model: nn.Module) -> dict[int, Tensor]:
    """Return a memo with which `copy.deepcopy` shares the buffers instead of copying them."""
    return {id(buffer): buffer for buffer in model.buffers()}
