"""The section of the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from maskformer.config.schema.fields import (
    MAX_CLASSES,
    Finite,
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
"""Tells the two apart by itself, for errors of the one that was meant."""


class CriterionConfig(Section):
    """Weights of the matching cost and of the loss (paper §3.3, appendix A)."""

    class_weight: Weight = 1.0
    """Of the classification term, in the matching cost and in the loss."""
    mask_weight: Weight = 20.0
    """Of the focal term, in both."""
    dice_weight: Weight = 1.0
    """Of the dice term, in both."""
    no_object_weight: Weight = 0.1
    """Of queries without a segment, in the cross-entropy."""
    alpha: Annotated[Finite, Field(le=1)] = 0.25
    """Share of the focal loss that positive pixels have; negative: no such shares."""
    gamma: NonNegative = 2.0
    """Exponent by which the focal loss discounts easy pixels."""
    class_weights: ClassWeights | None = None
    """Weights of the classes in the cross-entropy: one per class, or by name, the others at 1. They
    weigh no matching cost, as in the official code.
    """
    class_loss: Literal["per_process", "over_all"] = "per_process"
    """What the class loss is the mean of: the queries of each process, as officially, where a
    segment weighs more on processes that have few; or those of all, so that several processes learn
    what one would.
    """
    matching: Literal["bipartite", "fixed"] = "bipartite"
    """Which query learns a segment: that of least cost, or that of its class, of as many queries as
    classes (MaskFormer-fixed, paper table 4).
    """
