"""Types of values that are used in several sections, with their limits."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from maskformer.system.documents import shown


def _check_number(value: Any) -> Any:
    """Reject true and false, which pydantic would convert to 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(
            f"expected a number, got {str(value).lower()}; YAML reads no, off, yes, on as false "
            "and true"
        )
    return value


# Follows the limits in an annotation, so that the JSON schema has them.
IS_NUMBER = BeforeValidator(_check_number)

Fraction = Annotated[float, Field(ge=0, le=1), IS_NUMBER]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), IS_NUMBER]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), IS_NUMBER]
Byte = Annotated[int, Field(ge=0, le=255), IS_NUMBER]

PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of ImageNet per channel, in units of 0..255."""
MIDDLE_LEVEL = 127.5
"""Mean and standard deviation for channels other than RGB: 0..255 becomes -1..1."""
MAX_LEVEL = 1e6
"""Limit of a mean or standard deviation of pixels."""
MAX_PIXELS = 178_956_970
"""Default limit of the pixels of an image, the same as Pillow's."""
MAX_NAME = 1000
MAX_DIGITS = 19
# Upper limits are far above all known models, and far below values that do harm; see `check_size`.
PositiveInt = Annotated[int, Field(gt=0, lt=2**31), IS_NUMBER]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31), IS_NUMBER]
Integer = Annotated[int, Field(gt=-(2**63), lt=2**63), IS_NUMBER]
Seed = Annotated[int, Field(ge=0, lt=2**32), IS_NUMBER]
Weight = Annotated[float, Field(ge=0, le=1e6), IS_NUMBER]
"""The weight of a term of the loss, which is computed in float32."""
Finite = Annotated[float, Field(allow_inf_nan=False), IS_NUMBER]
MAX_SIDE = 1 << 15
MAX_DIVISIBILITY = 1 << 12
"""Limit of the number to whose multiples the sides of a network input are padded."""
COARSEST_STRIDE = 32
"""The stride in pixels of the coarsest map of a backbone: the smallest side of a network input."""
Side = Annotated[int, Field(gt=0, le=MAX_SIDE), IS_NUMBER]
"""The side of an image in pixels."""
Channels = Annotated[int, Field(gt=0, le=1 << 14), IS_NUMBER]
MAX_BANDS = 1 << 10
Percent = Annotated[float, Field(ge=0, le=100), IS_NUMBER]
Count = Annotated[int, Field(gt=0, le=1 << 16), IS_NUMBER]
"""A number of classes, queries etc."""
Layers = Annotated[int, Field(ge=0, le=64), IS_NUMBER]
Dilation = Annotated[int, Field(gt=0, le=64), IS_NUMBER]


def _check_channels(value: Any) -> Any:
    bands = value if isinstance(value, list | tuple) else [value]
    if not 0 < len(bands) <= MAX_BANDS or not all(
        isinstance(band, int) and not isinstance(band, bool) and 0 < band <= MAX_BANDS
        for band in bands
    ):
        raise ValueError(
            "expected a number of channels, such as 4, or a list of bands counted from 1, such as "
            f"[4, 3, 2]; both up to {MAX_BANDS}; got {shown(value)}"
        )
    return value


ImageChannels = Annotated[int | tuple[int, ...], BeforeValidator(_check_channels)]
"""The channels of images: their number, or a list of the bands to use."""


def check_text(value: Any) -> Any:
    if isinstance(value, bool | int | float | date):
        raise ValueError(
            f"a name must be text, got {shown(value)}; YAML reads no, off, yes, on as false and "
            "true, digits as a number, and 2024-01-31 as a date: write the name in quotes"
        )
    return value


def check_name(name: str) -> str:
    if len(name) > MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} characters")
    return name


def _as_list(value: Any) -> Any:
    """Convert a single value to a list."""
    return (value,) if isinstance(value, str | int | float) else value


# Not `max_length`: with it, pydantic rejects surrogates, which stand for bytes that are not UTF-8.
Name = Annotated[str, BeforeValidator(check_text), AfterValidator(check_name)]
OneOrMore = BeforeValidator(_as_list)

# `png` is converted to `.png`; suffixes such as `_mask.png` are kept.
Suffix = Annotated[str, AfterValidator(lambda text: f".{text}" if text.isalnum() else text)]

MAX_CLASSES = 1 << 16


def _check_path(value: Any) -> Any:
    if value == "":
        raise ValueError("expected a path, got an empty text; '.' is the current folder")
    return value


FilePath = Annotated[Path, BeforeValidator(_check_path)]
"""A file or a folder. An empty text, which Python takes for the current folder, is rejected."""
DataRoot = Annotated[FilePath, AfterValidator(Path.expanduser)]
Size = Annotated[
    tuple[Side, Side],
    BeforeValidator(lambda value: (value, value) if type(value) is int else value),
]
"""Height and width in pixels; a single number is used for both."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
