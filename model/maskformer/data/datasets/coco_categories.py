"""The classes of the COCO formats: the listed categories, or those of `data.label_map`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskformer.config.schema import ANY
from maskformer.data.datasets.class_names import is_called
from maskformer.data.datasets.coco_json import Category
from maskformer.data.labels.label_table import VOID, name_classes
from maskformer.data.pairing import IMAGE_SUFFIXES
from maskformer.data.palette import palette
from maskformer.data.sample import DatasetInfo
from maskformer.errors import DatasetError
from maskformer.system.listing import count_names, names_in, why_absent
from maskformer.system.paths import missing_files
from maskformer.system.text import escape

SHOWN = 8


@dataclass(frozen=True)
class Categories:
    """The classes of a data set.

    Attributes:
        info: the classes.
        class_of: the class of each category id, or `VOID` if the recipe maps it to none.
    """

    info: DatasetInfo
    class_of: Mapping[int, int]

    @classmethod
    def from_list(
        cls,
        categories: Sequence[Category],
        label_map: Mapping[int | str, int | str | None] | None,
        file: Path,
    ) -> Categories:
        """Make one class per category, in order, or the classes of `data.label_map`. A class of the
        map is a thing if all of its categories are.

        Args:
            categories: the categories.
            label_map: `data.label_map`.
            file: the file with the categories, for messages.

        Raises:
            DatasetError: an id is listed twice, or the map does not match the categories.
        """
        ids = [category.id for category in categories]
        if len({*ids}) != len(ids):
            raise DatasetError(f"the categories of {file} list a category id twice")
        if label_map is None:
            names, class_of = tuple(c.name for c in categories), {n: k for k, n in enumerate(ids)}
        else:
            names, class_of = _mapped(categories, label_map, file)
        members: list[list[Category]] = [[] for _ in names]
        for category in categories:
            if class_of[category.id] != VOID:
                members[class_of[category.id]].append(category)
        colors = palette(len(names))
        info = DatasetInfo(
            classes=names,
            things=frozenset(
                k for k, merged in enumerate(members) if all(c.isthing for c in merged)
            ),
            colors=tuple(merged[0].color or colors[k] for k, merged in enumerate(members)),
            category_ids=tuple(merged[0].id for merged in members),
        )
        return cls(info, class_of)

    def with_background(self, name: str) -> tuple[Categories, int]:
        """Return classes that include the background, and the index of that class. It is the class
        with this name or, if there is none, a new one before the others.
        """
        info = self.info
        for k, other in enumerate(info.classes):
            if is_called(other, name):
                return replace(self, info=replace(info, things=info.things - {k})), k
        number = 0 if 0 not in info.category_ids else max(info.category_ids) + 1
        colors = palette(info.num_classes + 1)
        unused = next(color for color in colors if color not in info.colors)
        info = DatasetInfo(
            (name, *info.classes),
            frozenset(k + 1 for k in info.things),
            (unused, *info.colors),
            (number, *info.category_ids),
        )
        shifted = {n: k if k == VOID else k + 1 for n, k in self.class_of.items()}
        return Categories(info, shifted), 0


def _mapped(
    categories: Sequence[Category], label_map: Mapping[int | str, int | str | None], file: Path
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the names of the classes in the map, and the class of each category id."""
    known = {category.name for category in categories} | {category.id for category in categories}
    unknown = [str(key) for key in label_map if key not in known and key != ANY]
    if unknown:
        raise DatasetError(
            f"data.label_map has the keys {', '.join(unknown[:SHOWN])}, which are not names or ids "
            f"of categories in {file}"
        )
    names, class_of_name = name_classes([*label_map.values()], None)
    class_of: dict[int, int] = {}
    missing = []
    for category in categories:
        if category.name in label_map and category.id in label_map:
            raise DatasetError(
                f"data.label_map has the keys {escape(category.name)} and {category.id}, which "
                f"are one category in {file}; remove one of them"
            )
        key = next((k for k in (category.name, category.id, ANY) if k in label_map), None)
        if key is None:
            missing.append(category.name)
        else:
            class_of[category.id] = class_of_name[label_map[key]]
    if missing:
        listing = ", ".join(map(escape, missing[:SHOWN])) + ", ..." * (len(missing) > SHOWN)
        raise DatasetError(
            f"data.label_map does not map {len(missing)} of the {len(categories)} categories: "
            f"{listing}; add them, or '*': null to map all others to void"
        )
    reached = {*class_of.values()}
    unused = [name for k, name in enumerate(names) if k not in reached]
    if unused:
        raise DatasetError(f"data.label_map maps no category to {', '.join(unused[:SHOWN])}")
    return names, class_of


def check_present(folder: Path, names: Sequence[str], root: Path, key: str) -> None:
    """Check that the files named in a JSON file exist.

    Args:
        folder: the folder of the files.
        names: the names in the JSON file.
        root: the root of the data; links may point anywhere inside it.
        key: the setting that names the folder.

    Raises:
        DatasetError: the folder or a file is missing, or a link points outside of `root`.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"there is no folder {folder}; set data.root or {key} ({why_absent(folder)})"
        )
    missing = missing_files(folder, names, root, f"{key}: the JSON's file_name")
    if missing:
        remedy = f"set {key}, or remove the entries from the JSON"
        # labelme's names include the folder. `Path.is_file` would raise if a name is too long.
        if os.path.isfile(folder.parent / missing[0]):  # noqa: PTH113
            remedy = f"the names are relative to {folder.parent}: set {key} to it"
        raise DatasetError(
            f"{len(missing)} of {len(names)} files that the JSON names are missing from {folder}, "
            f"first {escape(missing[0])}; {remedy}"
        )


def unlisted_images(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return a note on images next to those in a JSON file that it does not list, if there are any.

    Args:
        folder: the folder of the images.
        names: all names in the JSON file, relative to the folder.
    """
    listed = {*names}
    above = {name.rpartition("/")[0] for name in names}
    there = [f"{inner}/{name}".lstrip("/") for inner in above for name in names_in(folder / inner)]
    others = [
        name for name in there if name not in listed and Path(name).suffix.lower() in IMAGE_SUFFIXES
    ]
    if not others:
        return ()
    return (f"skipped in {escape(folder)}: {count_names(others, 'that the JSON does not list')}",)
