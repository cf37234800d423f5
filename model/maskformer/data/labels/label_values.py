"""Error messages for label values outside of the classes, with the setting that fixes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from maskformer.config.schema import PixelLabels
from maskformer.data.labels.label_check import (
    common_factor,
    mask_remedy,
    rule_for_multiples,
    white_of_masks,
)
from maskformer.data.labels.label_table import is_color
from maskformer.data.sample import DatasetInfo
from maskformer.errors import LabelValueError
from maskformer.system.text import escape

USUAL_VOID = (254, 255, 65534, 65535)


def explain_label_values(
    errors: Sequence[LabelValueError], config: PixelLabels, info: DatasetInfo
) -> str:
    """Describe the files, the values and the likely cause.

    Args:
        errors: one error per file.
        config: the settings that map values to classes.
        info: the classes.
    """
    pixels: Counter[int] = Counter()
    found: set[int] = set()
    for error in errors:
        pixels.update(error.values)
        found.update(error.found)
    values = sorted(pixels)
    shown = "#{:06x}".format if any(map(is_color, config.label_map or ())) else str
    listing = ", ".join(f"{shown(value)} ({pixels[value]} pixels)" for value in values[:6])
    listing += f" and {len(values) - 6} more" if len(values) > 6 else ""
    files = (
        f"label file {escape(errors[0].file)} has"
        if len(errors) == 1
        else f"{len(errors)} label files have"
    )
    where = "" if len(errors) == 1 else f" The first is {escape(errors[0].file)}."
    start = f"{files} the value{'s' if len(values) > 1 else ''} {listing}, "
    if config.label_map is not None:
        return (
            f"{start}which data.label_map does not list.{where} Add them, for example as "
            f"{shown(values[0])!r}: null for void, or '*': null for all others."
        )
    first, last = config.label_offset, config.label_offset + info.num_classes - 1
    return (
        f"{start}outside the {info.num_classes} classes (values {first} to {last}; void "
        f"is {list(config.ignore)}).{where} "
        f"Likely cause: {_cause(values, found, config, info)}."
    )


def _cause(values: list[int], found: set[int], config: PixelLabels, info: DatasetInfo) -> str:
    num_classes = info.num_classes
    first, last = config.label_offset, config.label_offset + num_classes - 1
    them = "them" if len(values) > 1 else "it"
    ignore_them = f"add {them} to data.ignore: {sorted({*config.ignore, *values})}"
    if values[0] < 0 or values[-1] > 65535:
        return "these are not class numbers; expected an 8-bit or 16-bit label image"
    white = white_of_masks(found)
    if white and num_classes <= 2:
        return mask_remedy(white, info)
    factor = common_factor(found)
    if factor > 1 and max(found) // factor < num_classes:
        rule = rule_for_multiples(found, factor, info)
        return (
            f"class numbers were multiplied by {factor} to make them visible: set "
            f"data.label_map: {rule}"
        )
    if all(value < first for value in values):
        return (
            f"values below data.label_offset {first} stand for void: {ignore_them}, "
            f"or classes count from {values[0]}: set data.label_offset: {values[0]}"
        )
    if all(value in USUAL_VOID for value in values):
        masks = f"; or {mask_remedy(white, info)}" if white else ""
        return f"the value stands for void: {ignore_them}{masks}"
    if values == [last + 1] and first not in found and first == 0:
        return "classes count from 1: set data.label_offset: 1"
    if values == [last + 1] and first == 0:
        shifted = [0, *(value for value in config.ignore if value != 0)]
        return (
            f"the value stands for void: {ignore_them}; or 0 means unlabelled and classes count "
            f"from 1: set data.label_offset: 1 and data.ignore: {shifted}; or data.classes lacks "
            "the last name"
        )
    needed = (
        max(value for value in values if value not in USUAL_VOID or value == values[0]) - first + 1
    )
    return (
        f"data.classes lists {num_classes} names and the labels need {needed}, "
        f"or these values stand for void: {ignore_them}"
    )
