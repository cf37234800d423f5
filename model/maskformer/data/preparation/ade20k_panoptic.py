"""ADE20K's panoptic labels, made from its semantic and instance maps."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter
from scipy.ndimage import find_objects

from maskformer.config.recipes import CONFIG_FOLDER
from maskformer.data.image_files.opening import opened
from maskformer.data.label_reader import id_to_rgb, read_labels
from maskformer.data.preparation.files import (
    Prepared,
    for_each,
    make_folders,
    names_with,
    write_missing,
)
from maskformer.errors import DatasetError
from maskformer.system.reading import read_json
from maskformer.system.text import escape
from maskformer.system.writing import write_json

_SEGMENTS = "segments_info"
"""Key of the text in a PNG that describes its segments, from which a later run makes the JSON."""
_SPLITS = {"train": "training", "val": "validation"}
_VOID_LABEL = 255


class _Split(NamedTuple):
    root: Path
    folder: str
    panoptic: Path
    categories: list[dict[str, Any]]
    json_file: Path
    described: dict[str, Any] | None
    """The segments of each PNG in the JSON file; None if the file does not exist yet."""


class _Segment(BaseModel):
    """A segment in COCO's panoptic format."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: PositiveInt
    category_id: NonNegativeInt
    area: PositiveInt
    bbox: Annotated[list[NonNegativeInt], Field(min_length=4, max_length=4)]
    iscrowd: Literal[0] = 0


_SEGMENT_LIST = TypeAdapter(list[_Segment])


class _Done(NamedTuple):
    image: dict[str, Any]
    segments: list[dict[str, Any]]
    written: int


def prepare_ade20k_panoptic(root: Path) -> Prepared:
    """Write `ade20k_panoptic_train` and `_val` (PNGs and a JSON file in COCO's panoptic format)
    and `annotations_detectron2` (class - 1, 255 for void) next to the archive's folders.

    As in the official preparation, stuff comes from `annotations`, and things, which are on top of
    it, from `annotations_instance`. Areas and boxes are those of the visible pixels; the official
    ones of stuff include the pixels under things.

    Args:
        root: the folder `ADEChallengeData2016` of the archive with `annotations_instance` in it.

    Raises:
        DatasetError: it is not that folder, or images in it cannot be used.
        DiskFullError, OSError: the results cannot be written.
    """
    categories = json.loads((CONFIG_FOLDER / "ade20k_panoptic" / "categories.json").read_text())
    images = written = 0
    for short, folder in _SPLITS.items():
        panoptic, file = root / f"ade20k_panoptic_{short}", root / f"ade20k_panoptic_{short}.json"
        expected = "the official folder ADEChallengeData2016 with annotations_instance in it"
        names = names_with(root / "images" / folder, ".jpg", expected)
        names_with(root / "annotations_instance" / folder, ".png", expected)
        described = _described(file) if file.exists() else None
        split = _Split(root, folder, panoptic, categories, file, described)
        make_folders([root / "annotations_detectron2" / folder, panoptic])
        done = for_each(names, partial(_prepare, split), f"Preparing ADE20K panoptic, {folder}")
        if described is None:
            write_json(file, _content(done, categories))
        images += len(names)
        written += sum(prepared.written for prepared in done) + (described is None)
    results = ("ade20k_panoptic_train", "ade20k_panoptic_val", "annotations_detectron2")
    return Prepared(images, written, tuple(root / name for name in results))


def merge(
    classes: NDArray[np.integer], instances: NDArray[np.integer], things: list[int], name: str
) -> tuple[NDArray[np.int32], list[int]]:
    """Merge the semantic and the instance map of an image.

    Args:
        classes: `[H, W]`, the class from 1 to 150, 0 for void.
        instances: `[H, W, >=2]`, the category of a thing (1 to 100) and its number in the image,
            0 for no thing.
        things: the class, counted from 0, of each thing category.
        name: the instance file, for messages.

    Returns:
        The segment ids `[H, W]`, 0 for void, and the classes of the segments 1, 2, ...

    Raises:
        DatasetError: a thing has no category, or several.
    """
    ids = np.zeros(classes.shape, np.int32)
    found: list[int] = []
    for value in np.unique(classes).tolist():
        if value and value - 1 not in things:
            found.append(value - 1)
            ids[classes == value] = len(found)
    for number in np.unique(instances[..., 1]).tolist():
        if number == 0:
            continue
        mask = instances[..., 1] == number
        kinds = np.unique(instances[..., 0][mask]).tolist()
        if len(kinds) != 1 or not 1 <= kinds[0] <= len(things):
            raise DatasetError(
                f"instance file {name} gives the object {number} the categories {kinds}, expected "
                f"one of 1 to {len(things)}"
            )
        found.append(things[kinds[0] - 1])
        ids[mask] = len(found)
    return ids, found


def _prepare(split: _Split, name: str) -> _Done:
    file = split.root / "annotations" / split.folder / f"{name}.png"
    labels = split.root / "annotations_detectron2" / split.folder / f"{name}.png"
    panoptic = split.panoptic / f"{name}.png"
    written = 0
    if not labels.exists() or not panoptic.exists():
        classes = read_labels(file)
        if classes.max() > len(split.categories):
            raise DatasetError(
                f"label file {escape(file)} has the value {classes.max()}, expected 0 to "
                f"{len(split.categories)}"
            )
        plain = np.where(classes == 0, _VOID_LABEL, classes - 1).astype(np.uint8)
        written = write_missing(labels, partial(Image.fromarray(plain).save, format="PNG"))
        written += write_missing(panoptic, partial(_write_panoptic, split, name, classes))
    if split.described is not None:
        return _Done({}, [], written)
    with opened(split.root / "images" / split.folder / f"{name}.jpg", "image") as image:
        width, height = image.size
    segments = _read_segments(panoptic, (width, height))
    image_entry = {"id": name, "file_name": f"{name}.jpg", "width": width, "height": height}
    return _Done(image_entry, segments, written)


def _write_panoptic(split: _Split, name: str, classes: NDArray[np.integer], target: Path) -> None:
    file = split.root / "annotations_instance" / split.folder / f"{name}.png"
    with opened(file, "instance") as image:
        if len(image.getbands()) < 2:
            raise DatasetError(
                f"instance file {escape(file)} has {image.mode} pixels, expected RGB with the "
                "category in R and the number in G"
            )
        instances = np.asarray(image)
    if instances.shape[:2] != classes.shape:
        raise DatasetError(
            f"instance file {escape(file)} is {instances.shape[1]}x{instances.shape[0]} pixels, "
            f"its label file {classes.shape[1]}x{classes.shape[0]}"
        )
    things = [category["id"] for category in split.categories if category["isthing"]]
    ids, found = merge(classes, instances, things, escape(file))
    segments = _describe(ids, found)
    if split.described is not None and split.described.get(f"{name}.png") != segments:
        raise DatasetError(
            f"{escape(split.panoptic / name)}.png is missing, and {escape(split.json_file)} "
            "describes other segments than a new one would have: restore the PNG, or move the JSON "
            "file away so that it is written again"
        )
    text = PngInfo()
    text.add_text(_SEGMENTS, json.dumps(segments))
    Image.fromarray(id_to_rgb(ids)).save(target, format="PNG", pnginfo=text)


def _describe(ids: NDArray[np.int32], classes: list[int]) -> list[dict[str, Any]]:
    """Return COCO's `segments_info`, without segments that have no visible pixel."""
    areas = np.bincount(ids.ravel(), minlength=len(classes) + 1).tolist()
    segments = []
    for number, box in enumerate(find_objects(ids, len(classes)), 1):
        if box is not None:
            rows, columns = box
            sides = [columns.start, rows.start, *(s.stop - s.start for s in (columns, rows))]
            segment = _Segment(
                id=number, category_id=classes[number - 1], area=areas[number], bbox=sides
            )
            segments.append(segment.model_dump())
    return segments


def _described(file: Path) -> dict[str, Any]:
    """Return the segments of each PNG in a JSON file, or {} if it has another format."""
    try:
        entries = read_json(file)["annotations"]
        return {entry["file_name"]: entry["segments_info"] for entry in entries}
    except (ValueError, LookupError, TypeError):
        return {}


def _read_segments(file: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Read the segments that this or an earlier run wrote into a PNG."""
    with opened(file, "panoptic") as image:
        text, found = image.info.get(_SEGMENTS, ""), image.size
    try:
        segments = _SEGMENT_LIST.validate_json(text)
    except ValueError:
        raise DatasetError(
            f"{escape(file)} was not written by this command, and the JSON file that describes it "
            "is missing: move the folder away, or restore the JSON file"
        ) from None
    if found != size:
        raise DatasetError(
            f"{escape(file)} is {found[0]}x{found[1]} pixels, its image {size[0]}x{size[1]}"
        )
    return [segment.model_dump() for segment in segments]


def _content(done: list[_Done], categories: list[dict[str, Any]]) -> dict[str, Any]:
    annotations = [
        {
            "image_id": prepared.image["id"],
            "file_name": f"{prepared.image['id']}.png",
            "segments_info": prepared.segments,
        }
        for prepared in done
    ]
    images = [prepared.image for prepared in done]
    return {"images": images, "annotations": annotations, "categories": categories}
