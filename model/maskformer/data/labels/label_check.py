"""Detection of raw label values that are valid but suspicious."""

from __future__ import annotations

from collections.abc import Collection
from math import gcd

from maskformer.config.schema import PixelLabels
from maskformer.data.sample import DatasetInfo, Split
from maskformer.errors import DatasetError
from maskformer.system.text import escape

SMALLEST_WHITE = 100
"""The smallest bright value of masks, which have 0 and one value such as 255 or 65535."""
MANY = 150
SMALLEST_FACTOR = 5


def suspicious_labels(
    found: Collection[int], config: PixelLabels, info: DatasetInfo, split: Split
) -> list[str]:
    """Check the values that occur in the label files of a split.

    Args:
        found: the values.
        config: how values are mapped to classes.
        info: the classes.
        split: the split.

    Returns:
        Warnings, one sentence each: values look multiplied by a factor, or there are too many.

    Raises:
        DatasetError: the training labels are masks of 0 and 255, of which one class would remain.
    """
    if config.label_map is not None:
        return []
    warnings = []
    if (white := white_of_masks(found)) and info.num_classes <= 2:
        message = f"the label files hold only 0 and {white}: {mask_remedy(white, info)}"
        if split == "train":
            raise DatasetError(message)
        warnings.append(message)  # a few validation images may show only one class, and void
    if (factor := common_factor(found)) > 1:
        warnings.append(
            f"the label values are multiples of {factor}, as if class numbers had been multiplied "
            "to make them visible; if so, set data.label_map: "
            f"{rule_for_multiples(found, factor, info)}"
        )
    if config.classes is None and len(found) > MANY:
        warnings.append(
            f"the labels hold {len(found)} different values, as if they had been smoothed or were "
            "not labels; set data.classes to the list of classes"
        )
    return warnings


def white_of_masks(values: Collection[int]) -> int:
    """Return the bright value if the values are those of a mask: 0 and one bright value. Else 0."""
    white = max(values, default=0)
    return white if {*values} == {0, white} and SMALLEST_WHITE <= white < 2**16 else 0


def mask_remedy(white: int, info: DatasetInfo | None = None) -> str:
    """Return advice on the setting for masks.

    Args:
        white: the value that is not 0.
        info: the classes; their names are used if there are at least two.
    """
    nothing, thing = "background", "object"
    if info is not None and info.num_classes >= 2:
        nothing, thing = map(escape, info.classes[:2])
    return (
        f"if they are masks, set data.label_map: {{0: {nothing}, {white}: {thing}}}; "
        f"if {white} is void, set data.label_map: {{0: {nothing}, 1: {thing}, {white}: null}}"
    )


def common_factor(values: Collection[int]) -> int:
    """Return the greatest common divisor of at least two positive values, or 1 if it is too small
    to be significant. It is 85 or 17 for 2-bit or 4-bit numbers that were scaled to 0..255.
    """
    above = [value for value in values if value > 0]
    factor = gcd(*above) if len(above) > 1 else 1
    return factor if factor >= SMALLEST_FACTOR else 1


def rule_for_multiples(values: Collection[int], factor: int, info: DatasetInfo) -> str:
    """Return the `label_map` that undoes a multiplication of class numbers, as YAML."""
    names = dict(enumerate(map(escape, info.classes)))
    multiples = sorted(value for value in values if value % factor == 0)
    rules = [f"{v}: {names.get(v // factor, 'null')}" for v in multiples[:8]]
    return f"{{{', '.join([*rules, *(['...'] if len(multiples) > 8 else [])])}}}"
