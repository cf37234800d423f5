"""The section of the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from maskformer.config.schema.fields import (
    IS_NUMBER,
    MAX_CLASSES,
    Name,
    NonNegative,
    Section,
    Weight,
)

ClassWeights = Annotated[
    Annotated[dict[Name, Weight], Field(max_length=MAX_CLASSES), Tag("(by name)")]
    | Annotated[tuple[Weight, ...], Field(max_length=MAX_CLASSES), Tag("(in order)")],
    Discriminator(lambda value: "(by name)" if isinstance(value, dict) else "(in order)"),
]
"""The discriminator makes pydantic report errors only for the form that was used."""


class CriterionConfig(Section):
    """Weights of the matching cost and of the loss (paper §3.2 and §4.1)."""

    class_weight: Weight = 1.0
    """Weight of the classification term, in the matching cost and in the loss."""
    mask_weight: Weight = 20.0
    """Weight of the focal term, in both."""
    dice_weight: Weight = 1.0
    """Weight of the dice term, in both."""
    no_object_weight: Weight = 0.1
    """Weight of queries without a segment, in the cross-entropy. With 0, a step without any segment
    is skipped: its loss is NaN, as in the official code.
    """
    alpha: Annotated[float, Field(le=1, allow_inf_nan=False), IS_NUMBER] = 0.25
    """Weight of positive pixels in the focal loss; negative pixels have 1 - alpha. A negative
    alpha: no such weights.
    """
    gamma: NonNegative = 2.0
    """Exponent by which the focal loss discounts easy pixels."""
    class_weights: ClassWeights | None = None
    """Class weights in the cross-entropy: one per class, or by name (other classes have 1). They do
    not affect the matching cost, as in the official code.
    """
    class_loss: Literal["per_process", "over_all"] = "per_process"
    """Over which queries the class loss is averaged: `per_process` over those of each process, as
    in the official code, so that a segment weighs more on processes that have few; `over_all` over
    those of all processes, so that several processes learn what one would.
    """
    matching: Literal["bipartite", "fixed"] = "bipartite"
    """Which query learns a segment: `bipartite` matches by least total cost; `fixed` takes the
    query of the segment's class, with as many queries as classes (MaskFormer-fixed, paper table 4).
    """
