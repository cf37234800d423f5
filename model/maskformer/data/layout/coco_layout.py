"""Detection of COCO's panoptic and instances JSON files, and of their folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from maskformer.data.layout.folder_layout import common_folder
from maskformer.data.layout.pairs import Folders
from maskformer.data.layout.split_names import split_in
from maskformer.system.reading import read_json

MAX_DEPTH = 3
"""Depth of the folders in which JSON files are looked for."""
MAX_BESIDE = 50
"""A folder with more JSON files than this has one per image, which are not worth reading."""
LOOKS = 20


@dataclass(frozen=True)
class CocoFile:
    """A JSON file and the folders of its files, all relative to the data root.

    Attributes:
        kind: the recipe's `data.format`.
        annotations: the JSON file.
        images: the folder of the images.
        panoptic: the folder of the PNGs, for `coco_panoptic`.
        count: the number of images.
        categories: a JSON file with the categories, if this one has none.
        alike: other folders with files of the same names, if it is ambiguous which is meant.
    """

    kind: Literal["coco_panoptic", "coco_instances"]
    annotations: str
    images: str
    panoptic: str
    count: int
    categories: str | None
    alike: tuple[str, ...] = ()


def coco_files(root: Path, folders: Folders, files: Sequence[str]) -> list[CocoFile]:
    """Find the JSON files below a folder that follow COCO's formats and whose images exist."""
    names = [n for n in files if n.lower().endswith(".json") and n.count("/") <= MAX_DEPTH]
    beside = Counter(name.rpartition("/")[0] for name in names)
    names = [name for name in names if beside[name.rpartition("/")[0]] <= MAX_BESIDE]
    contents = {name: _read(root / name) for name in names}
    lists = [
        name
        for name, content in contents.items()
        if isinstance(content, list) and content and "isthing" in _first(content)
    ]
    found = (
        _describe(name, content, folders, lists[0] if lists else None)
        for name, content in contents.items()
        if isinstance(content, Mapping)
    )
    return [file for file in found if file is not None]


def is_polygon_file(root: Path, files: Sequence[str]) -> bool:
    """Whether there are files of labelme, with one JSON of polygons per image."""
    name = next((name for name in files if name.lower().endswith(".json")), None)
    content = _read(root / name) if name is not None else None
    return isinstance(content, Mapping) and {"shapes", "imagePath"} <= content.keys()


def _read(file: Path) -> Any:
    try:
        return read_json(file)
    except (OSError, ValueError):
        return None


def _first(values: Any) -> Mapping[str, Any]:
    first = values[0] if isinstance(values, list) and values else None
    return first if isinstance(first, Mapping) else {}


def _file_names(entries: Any) -> list[str]:
    """Return the file names in the first `LOOKS` entries."""
    names = [entry.get("file_name") for entry in entries[:LOOKS] if isinstance(entry, Mapping)]
    return [name for name in names if isinstance(name, str) and PurePosixPath(name).name]


def _describe(
    name: str, content: Mapping[str, Any], folders: Folders, categories: str | None
) -> CocoFile | None:
    annotations, images = content.get("annotations"), content.get("images")
    first = _first(annotations)
    if not isinstance(images, list):
        images = []
    shown = _file_names(images)
    if "segments_info" in first:
        pngs = _file_names(annotations)
        shown = shown or [PurePosixPath(png).with_suffix(".jpg").as_posix() for png in pngs]
        (folder, *alike), (panoptic, *_) = (
            _folders_of(names, folders, name) or [""] for names in (shown, pngs)
        )
        if not folder or not panoptic:
            return None
        own = None if content.get("categories") else categories
        count = len(images) or len(pngs)
        return CocoFile("coco_panoptic", name, folder, panoptic, count, own, tuple(alike))
    if "segmentation" in first or "bbox" in first:
        folder, *alike = _folders_of(shown, folders, name) or [""]
        if folder:
            return CocoFile("coco_instances", name, folder, "", len(images), None, tuple(alike))
    return None


def _folders_of(names: Sequence[str], folders: Folders, annotations: str) -> list[str]:
    """Return the folders that contain most of the files and, among those, have most in common with
    the path of the JSON file; the innermost first.
    """
    counts = {
        folder: sum(name in known for name in names)
        for folder, inside in folders.items()
        if (known := frozenset(inside))
    }
    most = max(counts.values(), default=0)
    kinship = {f: _kinship(f, annotations) for f, count in counts.items() if 0 < count == most}
    closest = max(kinship.values(), default=None)
    return sorted((f for f, kin in kinship.items() if kin == closest), key=len, reverse=True)


def _kinship(folder: str, annotations: str) -> tuple[int, int, int]:
    """Rate how much the path of a folder has in common with that of a JSON file: the split, the
    length of the folder's names that occur in the other path, and the number of common parents.
    """
    own, other = split_in(folder), split_in(annotations)
    split = 0 if own is None or other is None else 1 if own == other else -1
    parts = folder.split("/")
    named = sum(len(part) for part in parts if part.lower() in annotations.lower())
    return split, named, len(PurePosixPath(common_folder(folder, annotations)).parts)
