"""Raw values that can be read but hardly mean what the settings say."""

from __future__ import annotations

from collections.abc import Collection
from math import gcd

from maskformer.config.schema import PixelLabels
from maskformer.data.sample import DatasetInfo, Split
from maskformer.errors import DatasetError
from maskformer.system.text import escape

SMALLEST_WHITE = 100
"""Of masks that image programs write: 0, and one bright value such as 255 or 65535."""
MANY = 150
SMALLEST_FACTOR = 5


def suspicious_labels(
    found: Collection[int], config: PixelLabels, info: DatasetInfo, split: Split
) -> list[str]:
    """Looks at the values that the label files of a split hold.

    Returns:
        Warnings, one sentence each: values that look multiplied, or too many of them.

    Raises:
        DatasetError: the training labels are masks of 0 and 255, of which one class would be left.
    """
    if config.label_map is not None:
        return []
    warnings = []
    if (white := white_of_masks(found)) and info.num_classes <= 2:
        said = f"the label files hold only 0 and {white}: {mask_remedy(white, info)}"
        if split == "train":
            raise DatasetError(said)
        warnings.append(said)  # a few images may show nothing of the one class, but void
    if (factor := common_factor(found)) > 1:
        warnings.append(
            f"the label values are multiples of {factor}, as if numbers had been stretched to be "
            f"seen; if so, set data.label_map: {rule_for_multiples(found, factor, info)}"
        )
    if config.classes is None and len(found) > MANY:
        warnings.append(
            f"the labels hold {len(found)} different values, as if they had been smoothed or were "
            "no labels; set data.classes to the list of classes"
        )
    return warnings


def white_of_masks(values: Collection[int]) -> int:
    """The bright value where there is only 0 beside it; 0 if these are no values of masks."""
    white = max(values, default=0)
    return white if {*values} == {0, white} and SMALLEST_WHITE <= white < 2**16 else 0


def mask_remedy(white: int, info: DatasetInfo | None = None) -> str:
    """What to set for masks.

    Args:
        white: the value that is not 0.
        info: gives the names where there are two.
    """
    nothing, thing = "background", "object"
    if info is not None and info.num_classes >= 2:
        nothing, thing = map(escape, info.classes[:2])
    return (
        f"if they are masks, set data.label_map: {{0: {nothing}, {white}: {thing}}}; "
        f"if {white} is void, say so: data.label_map: {{0: {nothing}, 1: {thing}, {white}: null}}"
    )


def common_factor(values: Collection[int]) -> int:
    """What all of at least two values above 0 are multiples of, as 2 and 4 bit numbers stretched to
    0..255 are of 85 and 17; 1 if it is too small to mean anything.
    """
    above = [value for value in values if value > 0]
    factor = gcd(*above) if len(above) > 1 else 1
    return factor if factor >= SMALLEST_FACTOR else 1


def rule_for_multiples(values: Collection[int], factor: int, info: DatasetInfo) -> str:
    """The `label_map` that undoes a multiplication, as YAML."""
    names = dict(enumerate(map(escape, info.classes)))
    multiples = sorted(value for value in values if value % factor == 0)
    rules = [f"{v}: {names.get(v // factor, 'null')}" for v in multiples[:8]]
    return f"{{{', '.join([*rules, *(['...'] if len(multiples) > 8 else [])])}}}"
