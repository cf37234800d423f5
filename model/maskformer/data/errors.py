"""What is wrong with a data set, in words for the person who can mend it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from maskformer.system.text import escape


class DatasetError(ValueError):
    """A file or a folder that cannot be used; the message names it, the cause and the remedy."""


class LabelValueError(DatasetError):
    """A label file with values that belong to no class.

    Attributes:
        file: the label file.
        values: pixels per offending value.
        found: every value of the file, in order.
    """

    def __init__(
        self,
        message: str,
        file: str = "",
        values: dict[int, int] | None = None,
        found: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message)
        self.file = file
        self.values = values or {}
        self.found = found

    def __reduce__(self) -> tuple[type[LabelValueError], tuple[object, ...]]:
        """Keeps the attributes on the way out of a worker process."""
        return type(self), (str(self), self.file, self.values, self.found)


@contextmanager
def naming(image: str) -> Iterator[None]:
    """Puts the image's name before what is wrong with its pixels."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"image {escape(image)}: {error}") from None
