from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from maskformer.config.schema import TrainConfig
from maskformer.training.optimizer import (
    build_optimizer,
    build_scheduler,
    learning_rate_factor,
    parameter_groups,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.table = nn.Module()
        self.table.relative_position_bias_table = nn.Parameter(torch.zeros(5))
        self.query = nn.Embedding(2, 3)
        self.head = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.tied = self.head
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)


def test_groups_follow_the_recipe() -> None:
    config = TrainConfig(lr=1e-3, weight_decay=0.05, backbone_lr_multiplier=0.1)
    model = Model()
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, config)
        for parameter in group["params"]
    }
    backbone = pytest.approx(1e-4)
    assert found[id(model.backbone[0].weight)] == (backbone, 0.05)
    assert found[id(model.backbone[0].bias)] == (backbone, 0.05)
    assert found[id(model.backbone[1].weight)] == (backbone, 0.0)
    assert found[id(model.table.relative_position_bias_table)] == (1e-3, 0.0)
    assert found[id(model.query.weight)] == (1e-3, 0.0)
    assert found[id(model.head.bias)] == (1e-3, 0.05)
    assert found[id(model.norm.weight)] == (1e-3, 0.0)
    assert len(found) == sum(p.requires_grad for p in model.parameters())


def test_poly_schedule_with_warmup() -> None:
    config = TrainConfig(steps=1000, warmup_steps=100, warmup_factor=0.5)
    assert learning_rate_factor(0, config) == 0.5
    assert learning_rate_factor(50, config) == pytest.approx(0.75 * 0.95**0.9)
    assert learning_rate_factor(500, config) == pytest.approx(0.5**0.9)
    assert learning_rate_factor(1000, config) == 0.0


def test_step_schedule() -> None:
    config = TrainConfig(steps=10, schedule="step", milestones=(4, 8), milestone_factor=0.1)
    factors = [learning_rate_factor(step, config) for step in range(10)]
    assert factors == pytest.approx([1] * 4 + [0.1] * 4 + [0.01] * 2)


def test_each_group_keeps_its_ratio_under_the_schedule() -> None:
    config = TrainConfig(lr=1.0, backbone_lr_multiplier=0.1, steps=4)
    optimizer = build_optimizer(Model(), config)
    scheduler = build_scheduler(optimizer, config)
    optimizer.step()
    scheduler.step()
    rates = {group["lr"] for group in optimizer.param_groups}
    assert sorted(rates) == pytest.approx([0.1 * 0.75**0.9, 0.75**0.9])


def test_a_non_finite_gradient_leaves_weights_and_state_alone() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.full((3,), math.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))
    assert not optimizer.state[weight]["exp_avg"].any()


def test_cosine_schedule_with_warmup() -> None:
    config = TrainConfig(steps=1000, schedule="cosine", warmup_steps=100, warmup_factor=0.5)
    assert learning_rate_factor(0, config) == 0.5
    assert learning_rate_factor(250, config) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert learning_rate_factor(500, config) == pytest.approx(0.5)
    assert learning_rate_factor(1000, config) == learning_rate_factor(1500, config) == 0.0
