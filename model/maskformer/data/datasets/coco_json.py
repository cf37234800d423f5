"""The JSON files of the COCO formats, checked entry by entry."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from maskformer.config.schema import Byte
from maskformer.errors import DatasetError
from maskformer.system.listing import why_absent
from maskformer.system.reading import read_json

LARGEST_ID = 2**63 - 1


def _whole(low: int, high: int) -> PlainValidator:
    """Validate whole numbers, including those that some programs write as 7.0."""

    def check(value: Any) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is int and low <= value <= high:
            return value
        raise PydanticCustomError("whole", f"Input should be a whole number in {low}..{high}")

    return PlainValidator(check)


def _check_image_id(value: Any) -> int | str:
    if type(value) is str:
        return value
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and 0 <= value <= LARGEST_ID:
        return value
    raise PydanticCustomError("image_id", "Input should be text or an integer in 0..2^63-1")


def _check_flag(value: Any) -> bool:
    """Validate flags. Some programs write them as text, and Python takes "0" for true."""
    flag = _FLAGS.get(value.strip().casefold() if isinstance(value, str) else repr(value))
    if flag is None:
        raise PydanticCustomError("flag", "Input should be 0, 1, true or false")
    return flag


_FLAGS = {
    **dict.fromkeys(("0", "0.0", "false", "False"), False),
    **dict.fromkeys(("1", "1.0", "true", "True"), True),
}
ImageId = Annotated[int | str, PlainValidator(_check_image_id)]
CategoryId = Annotated[int, _whole(0, LARGEST_ID)]
SegmentId = Annotated[int, _whole(0, 2**24 - 1)]
"""An id that a colour can encode; 0 is void."""
Flag = Annotated[bool, PlainValidator(_check_flag)]


def _area_or_nan(value: Any) -> float:
    """Return an area, or NaN if it is not valid: only evaluation uses it, and does not need it."""
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else math.nan


class Entry(BaseModel):
    """An object in the JSON file; other keys are ignored."""

    model_config = ConfigDict(frozen=True)


class ImageEntry(Entry):
    id: ImageId
    file_name: str


class Segment(Entry):
    id: SegmentId
    category_id: CategoryId
    iscrowd: Flag = False


class SizedImage(ImageEntry):
    width: Annotated[int, _whole(1, 1 << 20)] | None = None
    height: Annotated[int, _whole(1, 1 << 20)] | None = None


class Instance(Entry):
    """An object; `segmentation` is checked when it is decoded."""

    image_id: ImageId
    category_id: CategoryId
    iscrowd: Flag = False
    segmentation: Any = None
    area: Annotated[float, PlainValidator(_area_or_nan)] = math.nan


class Annotation(Entry):
    image_id: ImageId
    file_name: str
    segments_info: list[Segment]


class Category(Entry):
    id: CategoryId
    name: Annotated[str, Field(coerce_numbers_to_str=True)]
    isthing: Flag
    color: tuple[Byte, Byte, Byte] | None = None


class InstanceCategory(Category):
    isthing: Flag = True


E = TypeVar("E", bound=Entry)


def read_content(file: Path, key: str) -> Any:
    """Read a JSON file.

    Args:
        file: the file.
        key: the setting that names it.

    Raises:
        DatasetError: the file is missing or is not JSON.
    """
    try:
        return read_json(file)
    except FileNotFoundError:
        raise DatasetError(
            f"there is no file {file}; set data.root or {key} ({why_absent(file)})"
        ) from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read as JSON: {error}") from None


def entries(
    values: Any, kind: type[E], name: str, file: Path, form: str = "panoptic"
) -> Iterator[E]:
    """Validate and yield the entries of a list in the JSON file.

    Args:
        values: the list, as it was read.
        kind: the class of its entries.
        name: its key in the file.
        file: the file, for messages.
        form: the name of the COCO format, for messages.

    Raises:
        DatasetError: (while iterating) an entry does not follow the format.
    """
    if not isinstance(values, list):
        raise _error(file, form, name, "Input should be a list", values)
    for index, value in enumerate(values):
        try:
            yield kind.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            steps = "".join(
                f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]
            )
            key = f"{name}[{index}]{steps}"
            raise _error(file, form, key, first["msg"], first["input"]) from None


def _error(file: Path, form: str, key: str, message: str, value: Any) -> DatasetError:
    return DatasetError(
        f"{file} does not follow the COCO {form} format: {key}: {message}, "
        f"got {reprlib.repr(value)}"
    )
