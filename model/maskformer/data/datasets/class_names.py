"""Class names, given in a recipe or in a text file, and the `DatasetInfo` made from them."""

from __future__ import annotations

from pathlib import Path

from maskformer.config.recipes import CONFIG_FOLDER
from maskformer.config.schema import ObjectLabels, PixelLabels
from maskformer.data.palette import palette
from maskformer.data.sample import DatasetInfo
from maskformer.errors import DatasetError
from maskformer.system.reading import read_lines

BACKGROUND = "background"
LABELME_VOID = "__ignore__"


def read_names(names: tuple[str, ...] | Path, root: Path, key: str) -> tuple[str, ...]:
    """Return the names in a recipe, or those in a text file with one name per line.

    Args:
        names: the value of the setting; a file is looked up in `root` and among the recipes.
        root: the root of the data.
        key: the name of the setting, for messages.

    Raises:
        DatasetError: the file is missing, empty or not a text file, or the list is empty.
    """
    if not isinstance(names, Path):
        if not names:
            raise DatasetError(f"{key} is an empty list, expected at least one name")
        return names
    candidates = [root / names, CONFIG_FOLDER / names]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise DatasetError(
            f"{key}: there is no file {candidates[0]}"
            + ("" if names.is_absolute() else f" or {candidates[1]}")
        )
    try:
        lines = tuple(read_lines(file))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{key}: {file} cannot be read ({error}), expected UTF-8 text, one name per line"
        ) from None
    if not lines:
        raise DatasetError(f"{key}: {file} is empty, expected one class name per line")
    if lines[0] == LABELME_VOID:
        raise DatasetError(
            f"{key}: the first line of {file} is {LABELME_VOID}, labelme's word for void, which is "
            "not a class: remove the line, or use the class_names.txt of its export"
        )
    return lines


def is_called(name: str, *words: str) -> bool:
    """Whether a class has one of these names, ignoring case and surrounding underscores."""
    return name.strip("_ ").casefold() in {word.strip("_ ").casefold() for word in words}


def describe_classes(
    names: tuple[str, ...], numbers: tuple[int, ...], config: PixelLabels
) -> DatasetInfo:
    """Make the `DatasetInfo` of label files.

    Args:
        names: the names of the classes.
        numbers: the raw value of each class.
        config: the colours, and which classes are things.

    Raises:
        DatasetError: `data.things` or `data.colors` does not fit the names.
    """
    things = config.things if isinstance(config, ObjectLabels) else ()
    unknown = [name for name in things if name not in names]
    if unknown:
        raise DatasetError(
            f"data.things has names that are not in data.classes: {', '.join(unknown)}"
        )
    if config.colors is not None and len(config.colors) != len(names):
        raise DatasetError(
            f"data.colors must hold one colour per class, got {len(config.colors)} "
            f"for {len(names)} classes"
        )
    if isinstance(config, ObjectLabels) and config.splits_with_objects[0] and not things:
        things = tuple(name for name in names if not is_called(name, BACKGROUND))
    return DatasetInfo(
        classes=names,
        things=frozenset(k for k, name in enumerate(names) if name in things),
        colors=config.colors or palette(len(names)),
        category_ids=numbers,
    )
