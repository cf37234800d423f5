"""AdamW with the parameter groups of the paper's recipes, and their learning-rate schedules."""

from __future__ import annotations

import math
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchvision.ops import FrozenBatchNorm2d

from maskformer.config.schema import TrainConfig
from maskformer.training.sharding import copy_like

NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
    FrozenBatchNorm2d,
)
POSITION_NAMES = ("relative_position_bias_table", "absolute_pos_embed")


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay.

    The backbone learns at `lr * backbone_lr_multiplier`. Norm layers, embeddings and position
    tables are not decayed; biases of linear and convolution layers are (paper §4.2; official
    optimiser rules).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            in_backbone = "backbone" in module_name.split(".")
            no_decay = isinstance(module, (*NORMS, nn.Embedding)) or name in POSITION_NAMES
            lr = config.lr * (config.backbone_lr_multiplier if in_backbone else 1.0)
            groups[lr, 0.0 if no_decay else config.weight_decay].append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Build AdamW (betas 0.9 and 0.999, eps 1e-8). The fused implementation can skip a step with a
    non-finite gradient without synchronising with the host.
    """
    return torch.optim.AdamW(parameter_groups(model, config), lr=config.lr, fused=True)


def logged_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return the indices of the parameter groups whose learning rates are logged.

    These are `lr`, that of the head, and `lr_backbone`. A part that is frozen has no group. If only
    the backbone is trained, its rate is logged as `lr`.
    """
    group_of = {
        id(parameter): index
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in group_of:
            key = "lr_backbone" if "backbone" in name.split(".") else "lr"
            found.setdefault(key, group_of[id(parameter)])
    if "lr" not in found:
        found["lr"] = found.pop("lr_backbone", 0)
    return found


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, start_step: int = 0
) -> LambdaLR:
    """Build the schedule: warm-up times a polynomial, cosine or step decay.

    The rate depends only on the recipe and the step, so a run is resumed by passing `start_step`.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, partial(learning_rate_factor, config=config), start_step - 1)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the moments of a saved `state_dict`, but keep the recipe's rates and weight decay.

    Raises:
        ValueError: the saved parameters or their groups differ, so that the moments would be
            assigned to the wrong parameters.
    """
    groups = optimizer.state_dict()["param_groups"]
    if [g["params"] for g in state["param_groups"]] != [g["params"] for g in groups]:
        raise ValueError(
            "the saved optimizer groups the parameters differently: train.freeze changed, "
            "train.weight_decay changed from or to 0, or train.backbone_lr_multiplier from or to "
            "1; restore the values of the run"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    order = [index for group in groups for index in group["params"]]
    moments = {}
    for index, parameter in zip(order, parameters, strict=True):
        moments[index] = saved = dict(state["state"].get(index, {}))
        if "exp_avg" in saved and saved["exp_avg"].shape != parameter.shape:
            raise ValueError(
                "the saved optimizer trained other parameters: train.freeze changed; restore the "
                "value of the run"
            )
        for name in ("exp_avg", "exp_avg_sq"):
            if name in saved:  # fused kernels need the memory format of the parameter
                saved[name] = copy_like(saved[name], parameter)
    state = {"state": {k: saved for k, saved in moments.items() if saved}}
    optimizer.load_state_dict({**state, "param_groups": groups})


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Return the factor of the base learning rate at `step` (0-based)."""
    warmup = 1.0
    if step < config.warmup_steps:
        done = step / config.warmup_steps
        warmup = config.warmup_factor * (1 - done) + done
    if config.schedule == "poly":
        return float(warmup * max(0.0, 1 - step / config.steps) ** config.poly_power)
    if config.schedule == "cosine":
        return warmup * (1 + math.cos(math.pi * min(step / config.steps, 1.0))) / 2
    passed = sum(step >= milestone for milestone in config.milestones)
    return float(warmup * config.milestone_factor**passed)
