"""Hypothesis strategies for predictions and targets of the operations, and an accuracy check."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from mfkernels import SegmentTargets

thorough = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass(frozen=True)
class Case:
    """Problem sizes. `counts` are the segments of each image, `low` and `size` the (height, width)
    of the mask logits and of the targets.
    """

    layers: int = 2
    counts: tuple[int, ...] = (3, 2)
    queries: int = 7
    classes: int = 4
    channels: int = 5
    low: tuple[int, int] = (6, 5)
    size: tuple[int, int] = (24, 20)
    overlap: bool = False
    seed: int = 0

    def predictions(
        self, dtype: torch.dtype = torch.float32, *, grad: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits, mask embeddings, pixel features."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return values.to(dtype).requires_grad_(grad)

        batch = len(self.counts)
        return (
            draw(self.layers, batch, self.queries, self.classes + 1),
            draw(self.layers, batch, self.queries, self.channels),
            draw(batch, self.channels, *self.low),
        )

    def labels(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return [torch.randint(self.classes, (n,), generator=generator) for n in self.counts]

    def label_maps(self) -> Tensor:
        """Label maps `[B, H, W]` with void pixels and, occasionally, segments without pixels."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        maps = [torch.randint(-1, max(n, 1), self.size, generator=generator) for n in self.counts]
        return torch.stack([m.clamp(max=n - 1) for m, n in zip(maps, self.counts, strict=True)])

    def masks(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 3)
        if self.overlap:
            return [torch.rand((n, *self.size), generator=generator) < 0.3 for n in self.counts]
        return [
            label_map == torch.arange(n)[:, None, None]
            for label_map, n in zip(self.label_maps(), self.counts, strict=True)
        ]

    def targets(self) -> SegmentTargets:
        if self.overlap:
            return SegmentTargets.from_masks(self.masks(), self.labels())
        return SegmentTargets.from_label_maps(self.label_maps(), self.labels())

    def official_targets(self) -> list[dict[str, Tensor]]:
        return [
            {"labels": labels, "masks": masks}
            for labels, masks in zip(self.labels(), self.masks(), strict=True)
        ]


def official_outputs(class_logits: Tensor, masks: Tensor) -> dict[str, object]:
    """Predictions `[L, B, Q, …]` of all layers as the official code's dictionary of outputs."""
    *aux, final = (
        {"pred_logits": logits, "pred_masks": mask}
        for logits, mask in zip(class_logits, masks, strict=True)
    )
    return {**final, "aux_outputs": aux}


sides = st.integers(1, 9)

cases = st.builds(
    Case,
    layers=st.integers(1, 3),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
    queries=st.integers(1, 6),
    classes=st.integers(1, 4),
    channels=st.integers(1, 4),
    low=st.tuples(sides, sides),
    size=st.tuples(st.integers(1, 21), st.integers(1, 21)),
    overlap=st.booleans(),
    seed=st.integers(0, 2**20),
)
"""Small cases of odd sizes, including more segments than queries and images without segments."""

numbers = st.tuples(st.sampled_from([-1.0, 1.0]), st.floats(-30, 30)).map(
    lambda drawn: drawn[0] * 10.0 ** drawn[1]
)
ordinary = st.floats(-20, 20, width=32)
unusual = st.sampled_from([math.inf, -math.inf, math.nan])


def tensors(*shape: int, with_unusual: bool = True) -> st.SearchStrategy[Tensor]:
    """Logits: ordinary ones, some of extreme magnitude, and at most two that are not finite."""
    count = math.prod(shape)
    values = st.lists(st.one_of(ordinary, numbers), min_size=count, max_size=count)
    places = st.dictionaries(st.integers(0, count - 1), unusual, max_size=2 * with_unusual)

    def build(drawn: tuple[list[float], dict[int, float]]) -> Tensor:
        tensor = torch.tensor(drawn[0])
        for place, value in drawn[1].items():
            tensor[place] = value
        return tensor.view(shape)

    return st.tuples(values, places).map(build)


def assert_as_exact(ours: Tensor, plain: Tensor, truth: Tensor, unit: Tensor | float = 1.0) -> None:
    """Assert NaN exactly where plain PyTorch has NaN, and elsewhere errors of at most twice its own
    plus a few roundings.
    """
    assert torch.equal(ours.isnan(), plain.isnan())
    slack = 8 * 2**-23 * (truth.abs() + unit)
    allowed = 2 * (plain - truth).abs() + slack
    finite = ~plain.isnan()
    assert ((ours - truth).abs() <= allowed)[finite].all()
