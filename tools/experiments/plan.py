"""The variants of one setting that are compared, and the claims of the paper about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SETTING = Path(__file__).with_name("setting.yaml")
BASELINE = "maskformer"
GENERAL = "general_inference"
"""Not trained: the baseline with general inference, where each pixel takes the class of its best
query."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "per_pixel": ("model.architecture=per_pixel",),
    "per_pixel_plus": ("model.architecture=per_pixel_plus",),
    BASELINE: (),
    "queries_11": ("model.decoder.queries=11",),
    "queries_100": ("model.decoder.queries=100",),
    # With this weight, the loss is initially as large as the focal loss with its weight of 20.
    "cross_entropy": ("criterion.gamma=0", "criterion.alpha=-1", "criterion.mask_weight=2"),
    "fixed": ("model.decoder.queries=11", "criterion.matching=fixed"),
}
"""The values of the setting that each variant overrides."""
CHEAP = ("per_pixel", "per_pixel_plus", BASELINE)


@dataclass(frozen=True)
class Claim:
    """The claim of the paper that one variant is better than another.

    Attributes:
        better, worse: the names of the variants.
        figures: the mIoU of both on ADE20K with a ResNet-50 (paper, §4 and appendix).
    """

    better: str
    worse: str
    figures: tuple[float, float]


@dataclass(frozen=True)
class Experiment:
    """One table of the page.

    Attributes:
        variants: the name of each variant in the table.
    """

    name: str
    title: str
    variants: Mapping[str, str]
    claims: tuple[Claim, ...] = ()


EXPERIMENTS = (
    Experiment(
        "architecture",
        "Mask classification against per-pixel classification",
        {
            "per_pixel": "PerPixelBaseline",
            "per_pixel_plus": "PerPixelBaseline+",
            BASELINE: "MaskFormer",
        },
        (
            Claim("per_pixel_plus", "per_pixel", (41.9, 39.2)),
            Claim(BASELINE, "per_pixel_plus", (44.5, 41.9)),
            Claim(BASELINE, "per_pixel", (44.5, 39.2)),
        ),
    ),
    Experiment(
        "queries",
        "Number of queries",
        {"queries_11": "11 queries", BASELINE: "20 queries", "queries_100": "100 queries"},
        (Claim("queries_100", BASELINE, (44.5, 42.9)),),
    ),
    Experiment(
        "mask_loss",
        "Mask loss",
        {"cross_entropy": "cross-entropy and dice", BASELINE: "focal and dice"},
    ),
    Experiment(
        "matching",
        "Assignment of queries, one for each class",
        {"fixed": "fixed assignment", "queries_11": "bipartite matching"},
        (Claim("queries_11", "fixed", (44.2, 43.7)),),
    ),
    Experiment(
        "inference",
        "Semantic inference",
        {GENERAL: "argmax over the queries of a pixel", BASELINE: "product of probabilities"},
        (Claim(BASELINE, GENERAL, (44.5, 42.4)),),
    ),
)
