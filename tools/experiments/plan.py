"""What is compared: variants of one setting, and what the paper says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SETTING = Path(__file__).with_name("setting.yaml")
BASELINE = "maskformer"
GENERAL = "general_inference"
"""Not trained: the baseline, where each pixel takes the class of its best query."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "per_pixel": ("model.architecture=per_pixel",),
    "per_pixel_plus": ("model.architecture=per_pixel_plus",),
    BASELINE: (),
    "queries_11": ("model.decoder.queries=11",),
    "queries_100": ("model.decoder.queries=100",),
    # The weight lets the loss start as large as the focal one with its weight of 20.
    "cross_entropy": ("criterion.gamma=0", "criterion.alpha=-1", "criterion.mask_weight=2"),
    "fixed": ("model.decoder.queries=11", "criterion.matching=fixed"),
}
"""The values that each replaces in the setting."""
CHEAP = ("per_pixel", "per_pixel_plus", BASELINE)
LABELS = {
    "per_pixel": "PerPixelBaseline",
    "per_pixel_plus": "PerPixelBaseline+",
    BASELINE: "MaskFormer: 20 queries, focal loss, bipartite matching, product of probabilities",
    "queries_11": "11 queries, one per class",
    "queries_100": "100 queries",
    "cross_entropy": "cross-entropy in place of the focal loss",
    "fixed": "11 queries, each assigned to a class",
    GENERAL: "argmax over the queries of each pixel",
}


@dataclass(frozen=True)
class Claim:
    """Of two variants, the paper finds one better.

    Attributes:
        better, worse: names of variants.
        figures: the mIoU of both on ADE20K with a ResNet-50 (paper, §4 and appendix).
    """

    better: str
    worse: str
    figures: tuple[float, float]


@dataclass(frozen=True)
class Experiment:
    """One table of the page."""

    name: str
    title: str
    variants: tuple[str, ...]
    claims: tuple[Claim, ...] = ()


EXPERIMENTS = (
    Experiment(
        "architecture",
        "Mask classification against per-pixel classification",
        CHEAP,
        (
            Claim("per_pixel_plus", "per_pixel", (41.9, 39.2)),
            Claim(BASELINE, "per_pixel_plus", (44.5, 41.9)),
        ),
    ),
    Experiment(
        "queries",
        "Number of queries",
        ("queries_11", BASELINE, "queries_100"),
        (Claim("queries_100", BASELINE, (44.5, 42.9)),),
    ),
    Experiment("mask_loss", "Mask loss", ("cross_entropy", BASELINE)),
    Experiment(
        "matching",
        "Bipartite matching against fixed assignment",
        ("fixed", "queries_11"),
        (Claim("queries_11", "fixed", (44.2, 43.7)),),
    ),
    Experiment(
        "inference",
        "Semantic inference by the product of probabilities against argmax",
        (GENERAL, BASELINE),
        (Claim(BASELINE, GENERAL, (44.5, 42.4)),),
    ),
)
