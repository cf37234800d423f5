"""The JSON file of the COCO panoptic format, checked entry by entry."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from maskformer.config.schema import Byte
from maskformer.errors import DatasetError
from maskformer.system.reading import read_json

LARGEST_ID = 2**63 - 1


def _check_image_id(value: Any) -> Any:
    # A union would report both of its halves.
    if type(value) is str or (type(value) is int and 0 <= value <= LARGEST_ID):
        return value
    raise PydanticCustomError("image_id", "Input should be text or an integer in 0..2^63-1")


ImageId = Annotated[int | str, PlainValidator(_check_image_id)]
CategoryId = Annotated[int, Strict(), Field(ge=0, le=LARGEST_ID)]
SegmentId = Annotated[int, Strict(), Field(ge=1, lt=2**24)]
"""What a colour can say; 0 is void."""


class Entry(BaseModel):
    """An object of the JSON; keys that are not listed do not matter."""

    model_config = ConfigDict(frozen=True)


class ImageEntry(Entry):
    id: ImageId
    file_name: str


class Segment(Entry):
    id: SegmentId
    category_id: CategoryId
    # Some programs write flags as text; "0" is false.
    iscrowd: bool = False


class Annotation(Entry):
    image_id: ImageId
    file_name: str
    segments_info: list[Segment]


class Category(Entry):
    id: CategoryId
    name: Annotated[str, Field(coerce_numbers_to_str=True)]
    isthing: bool
    color: tuple[Byte, Byte, Byte] | None = None


E = TypeVar("E", bound=Entry)


def read_content(file: Path, key: str) -> Any:
    """The value in a JSON file.

    Args:
        file: what to read.
        key: the setting that names it.

    Raises:
        DatasetError: the file is missing or no JSON.
    """
    try:
        return read_json(file)
    except FileNotFoundError:
        raise DatasetError(f"there is no file {file}; set data.root or {key}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read as JSON: {error}") from None


def entries(values: Any, kind: type[E], name: str, file: Path) -> Iterator[E]:
    """The entries of one list of the JSON.

    Args:
        values: the list, as it was read.
        kind: of its entries.
        name: what the file calls it.

    Raises:
        DatasetError: (while iterating) an entry does not follow the format.
    """
    if not isinstance(values, list):
        raise _error(file, name, "Input should be a list", values)
    for index, value in enumerate(values):
        try:
            yield kind.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            steps = "".join(
                f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]
            )
            raise _error(file, f"{name}[{index}]{steps}", first["msg"], first["input"]) from None


def _error(file: Path, place: str, message: str, value: Any) -> DatasetError:
    return DatasetError(
        f"{file} does not follow the COCO panoptic format: {place}: {message}, "
        f"got {reprlib.repr(value)}"
    )
