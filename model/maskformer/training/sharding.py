"""Parameters, gradients and moments divided among the processes that train together (FSDP2)."""

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
"""Gathered one at a time; then the rest of each child of the model."""
WHOLE = StateDictOptions(full_state_dict=True)


class Shards:
    """A model of which each process keeps its part.

    PyTorch's own `fully_shard`: accelerate calls it on GPUs only.

    Args:
        model: the whole one, as `Accelerator.prepare_model` returns it without a wrapper, the same
            in all processes; it is changed in place, and its parameters are others afterwards.
        device: of this process.
    """

    def __init__(self, model: SegmentationModel, device: torch.device) -> None:
        self._model = model
        self._shapes = _without_values(model)
        # Which some blocks do. It is about changing them in place, as no block does.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        blocks = [part for part in model.modules() if isinstance(part, BLOCKS)]
        for part in (*blocks, *model.children(), model):  # inner ones first
            fully_shard(part, mesh=mesh)

    def whole_model(self) -> SegmentationModel:
        """A copy that is not divided, on the device of each process, with the buffers of the first.

        Called by every process.
        """
        weights: dict[str, Any] = get_model_state_dict(self._model, options=WHOLE)
        for name, _ in self._model.named_buffers():
            if name in weights:
                distributed.broadcast(weights[name], 0)
        model = copy.deepcopy(self._shapes, _buffers(self._shapes))
        model.load_state_dict(weights, assign=True)
        return model


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The `state_dict` of a sharded model's optimizer as one process has it, on the CPU.

    Called by every process; all but the first get no moments.
    """
    state = optimizer.state_dict()
    moments = {}
    for index, entry in state["state"].items():  # one by one: they are large
        gathered = {name: whole(value) for name, value in entry.items()}
        if distributed.get_rank() == 0:
            moments[index] = {name: value.cpu() for name, value in gathered.items()}
    return {**state, "state": moments}


def whole(tensor: Tensor) -> Tensor:
    """What the processes' parts of a tensor are together; another tensor is given back."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy in dtype, device and layout of a parameter; its part where that is divided."""
    if not isinstance(parameter, DTensor):
        return torch.empty_like(parameter).copy_(tensor)
    moved = tensor.to(parameter.device, parameter.dtype)
    mesh, placements = parameter.device_mesh, parameter.placements
    part: Tensor = distribute_tensor(moved, mesh, placements, src_data_rank=None)
    return part


def _without_values(model: SegmentationModel) -> SegmentationModel:
    """A copy whose parameters have shapes only, and whose buffers are the model's."""
    shapes = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, {**shapes, **_buffers(model)})


def _buffers(model: nn.Module) -> dict[int, Tensor]:
    """What makes `copy.deepcopy` share them."""
    return {id(buffer): buffer for buffer in model.buffers()}
