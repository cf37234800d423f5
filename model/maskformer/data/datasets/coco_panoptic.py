"""COCO panoptic format: per split, images, PNGs whose colours are segment ids, and a JSON file."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskformer.config.recipes import CONFIG_FOLDER
from maskformer.config.schema import CocoPanopticConfig, CocoPanopticSplit
from maskformer.data.datasets.coco_categories import Categories, check_present, unlisted_images
from maskformer.data.datasets.coco_json import (
    Annotation,
    Category,
    ImageEntry,
    entries,
    read_content,
)
from maskformer.data.datasets.split_files import take_share
from maskformer.data.image_files.orientation import ImageFrame
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.label_reader import check_same_size, read_labels, read_segment_ids
from maskformer.data.labels.label_table import VOID
from maskformer.data.sample import (
    Sample,
    Split,
    check_index,
    keep_segments,
    look_up,
    segment_areas,
)
from maskformer.errors import DatasetError
from maskformer.system.paths import name_inside
from maskformer.system.text import escape

BGR = "its channels are in the order blue, green, red, as OpenCV writes them; swap them"
VOID_LABEL = 255
"""The value of void in semantic label files."""
MISMATCH = "PNG and JSON belong to different versions, or the PNG was resized"


class CocoPanoptic:
    """Images with things and stuff in COCO panoptic format.

    Classes are numbered in the order in which the categories are listed.

    Args:
        config: where the files are.
        split: the split.

    Attributes:
        notes: notes on images that the JSON file does not list, and on semantic label files that
            are not used, if there are any.

    Raises:
        DatasetError: a file or folder is missing, or the JSON does not follow the format.
    """

    def __init__(self, config: CocoPanopticConfig, split: Split) -> None:
        self.config = config
        self._reader = ImageReader.from_config(config)
        paths, key = config.train, "data.train"
        if split == "val" and isinstance(config.val, CocoPanopticSplit):
            paths, key = config.val, "data.val"
        file = config.root / paths.annotations
        content = read_content(file, f"{key}.annotations")
        if not isinstance(content, dict) or not content.get("annotations"):
            raise DatasetError(f"{file} has no annotations; expected a COCO panoptic JSON")
        _check_panoptic(content["annotations"], file)
        listed, source = _categories(config, content, file)
        categories = Categories.from_list(listed, config.label_map, source)
        self.info = categories.info
        self._images, self._panoptic = config.root / paths.images, config.root / paths.panoptic
        self._read_annotations(content, categories.class_of, file)
        self.notes = unlisted_images(self._images, self._image_names)
        if isinstance(config.val, float):
            rows = [*enumerate(self._png_names)]
            taken = take_share(rows, config.val, config.seed, split, lambda row: row[1])
            self._keep([row for row, _ in taken])
        check_present(self._images, self._image_names, config.root, f"{key}.images")
        check_present(self._panoptic, self._png_names, config.root, f"{key}.panoptic")
        self._labels = None
        if split == "val" and paths.semantic_labels is not None:
            self._labels = self._find_labels(config.root / paths.semantic_labels, key)

    def _find_labels(self, folder: Path, key: str) -> Path | None:
        """Return the folder of the semantic label files, which are used only to measure mIoU."""
        reason = None
        if self.config.label_map is not None:
            reason = "data.label_map changes the classes"
        elif not folder.is_dir():
            reason = f"{folder} does not exist"
        if reason is not None:
            note = f"mIoU is measured on the panoptic PNGs, not on {key}.semantic_labels: {reason}"
            self.notes = (*self.notes, note)
            return None
        check_present(folder, self._png_names, self.config.root, f"{key}.semantic_labels")
        return folder

    def _read_annotations(
        self, content: Mapping[str, Any], class_of: Mapping[int, int], file: Path
    ) -> None:
        image_names = self._names_by_id(content.get("images") or [], file)
        self._image_ids: list[int | str] = []
        self._png_names: list[str] = []
        self._image_names: list[str] = []
        # Flat arrays, because every worker process would copy a million small Python objects.
        ends, ids, classes, crowd = [0], array("q"), array("q"), array("b")
        unknown: set[int] = set()
        for annotation in entries(content["annotations"], Annotation, "annotations", file):
            png = name_inside(self._panoptic, annotation.file_name, f"{file}: the file_name")
            self._image_ids.append(annotation.image_id)
            self._png_names.append(png)
            self._image_names.append(
                image_names.get(annotation.image_id) or PurePath(png).with_suffix(".jpg").as_posix()
            )
            for segment in annotation.segments_info:
                ids.append(segment.id)
                classes.append(class_of.get(segment.category_id, VOID))
                crowd.append(segment.iscrowd)
                if segment.category_id not in class_of:
                    unknown.add(segment.category_id)
            ends.append(len(ids))
        if unknown:
            raise DatasetError(
                f"{file} has segments with the category ids {sorted(unknown)[:8]}, which are not "
                "in its categories; set data.categories to the JSON that lists them"
            )
        # Of annotations that share an image or a PNG, at most one has the right pixels.
        for what, values in (
            ("image ids", self._image_ids),
            ("images", self._image_names),
            ("PNGs", self._png_names),
        ):
            twice = [escape(value) for value, count in Counter(values).items() if count > 1]
            if twice:
                raise DatasetError(
                    f"{file} has several annotations for the {what} {', '.join(twice[:8])}; remove "
                    "or correct all but one"
                )
        self._rows = np.stack([ends[:-1], ends[1:]], 1)
        self._ids = np.array(ids, np.int64)
        self._classes = np.array(classes, np.int64)
        self._crowd = np.array(crowd, np.bool_)

    def _keep(self, images: Sequence[int]) -> None:
        self._image_ids = [self._image_ids[k] for k in images]
        self._png_names = [self._png_names[k] for k in images]
        self._image_names = [self._image_names[k] for k in images]
        self._rows = self._rows[images]

    def _names_by_id(self, values: Any, file: Path) -> dict[int | str, str]:
        names: dict[int | str, str] = {}
        for image in entries(values, ImageEntry, "images", file):
            name = name_inside(self._images, image.file_name, f"{file}: the file_name")
            if names.setdefault(image.id, name) != name:
                raise DatasetError(
                    f"{file} gives the image id {image.id!r} to {escape(names[image.id])} and to "
                    f"{escape(name)}"
                )
        return names

    @property
    def files(self) -> list[tuple[Path, Path]]:
        """The image files, each with its PNG."""
        return [
            (self._images / image, self._panoptic / png)
            for image, png in zip(self._image_names, self._png_names, strict=True)
        ]

    @property
    def num_images(self) -> int:
        return len(self._png_names)

    def __len__(self) -> int:
        return len(self._png_names)

    def __getitem__(self, index: int) -> Sample:
        index = check_index(index, len(self))
        image_file = self._images / self._image_names[index]
        png_file = self._panoptic / self._png_names[index]
        image, frame = self._reader.read(image_file)
        ids = read_segment_ids(png_file, frame, self.config.max_pixels)
        check_same_size(image, image_file, ids, png_file)
        rows = slice(*self._rows[index])
        segments = torch.from_numpy(ids_to_segments(ids, self._ids[rows], png_file))
        labels = torch.from_numpy(self._classes[rows].copy())
        crowd = torch.from_numpy(self._crowd[rows].copy())
        present = segment_areas(segments, len(labels)) > 0
        if self.config.label_map is not None:
            segments = _merge_stuff(segments, labels, crowd, self.info.things)
        keep = (segment_areas(segments, len(labels)) > 0) & (labels != VOID)
        return Sample(
            image=image,
            segments=keep_segments(segments, keep),
            labels=labels[keep],
            crowd=crowd[keep],
            name=Path(self._image_names[index]).with_suffix("").as_posix(),
            image_id=self._image_ids[index],
            file_name=self._image_names[index],
            empty_segments=int((~present).sum()),
            classes=self._read_classes(index, image, image_file, frame),
        )

    def _read_classes(
        self, index: int, image: Tensor, image_file: Path, frame: ImageFrame
    ) -> Tensor | None:
        if self._labels is None:
            return None
        file = self._labels / self._png_names[index]
        values = read_labels(file, frame, self.config.max_pixels).astype(np.int64)
        check_same_size(image, image_file, values, file)
        values[values == VOID_LABEL] = VOID
        if values.max() >= self.info.num_classes:
            raise DatasetError(
                f"label file {escape(file)} has the value {values.max()}, expected 0 to "
                f"{self.info.num_classes - 1}, or {VOID_LABEL} for void"
            )
        return torch.from_numpy(values)


def _merge_stuff(
    segments: Tensor, labels: Tensor, crowd: Tensor, things: Collection[int]
) -> Tensor:
    """Merge segments whose categories are mapped to the same stuff class, as an image has at most
    one segment per stuff class.
    """
    first: dict[tuple[int, bool], int] = {}
    joined = []
    for k, (label, group) in enumerate(zip(labels.tolist(), crowd.tolist(), strict=True)):
        joined.append(k if label in things else first.setdefault((label, group), k))
    return look_up(torch.tensor(joined, dtype=segments.dtype), segments)


def ids_to_segments(
    ids: NDArray[np.int32], listed: NDArray[np.int64], file: Path
) -> NDArray[np.int32]:
    """Replace the segment ids of a PNG by their indices in the JSON's list; 0 becomes -1.

    Up to half of the listed segments (at least one) may have no pixel, besides any with id 0.

    Args:
        ids: `[H, W]`, the segment ids in the PNG.
        listed: `[T]`, the segment ids in the JSON file.
        file: the PNG, for messages.

    Raises:
        DatasetError: an id is listed twice or is not listed, or most listed segments have no pixel.
    """
    order = np.argsort(listed, kind="stable")
    order = order[listed[order] > 0]
    table = np.concatenate([[0], listed[order]])
    if (table[1:] <= table[:-1]).any():
        raise DatasetError(
            f"the JSON entry of {escape(file)} lists a segment id twice: {sorted(listed.tolist())}"
        )
    position = np.searchsorted(table, ids).clip(max=len(table) - 1)
    stray = table[position] != ids
    if stray.any():
        values, counts = np.unique(ids[stray], return_counts=True)
        swapped = (ids & 255) << 16 | ids & 0xFF00 | ids >> 16
        cause = BGR if np.isin(swapped, table).all() else MISMATCH
        raise DatasetError(
            f"panoptic file {escape(file)} has segment ids that its JSON entry does not list: "
            f"{_list_ids(values, counts)}; {cause}"
        )
    pixels = np.bincount(position.ravel(), minlength=len(table))
    missing = table[1:][pixels[1:] == 0]
    if len(missing) > max(1, len(listed) // 2):
        raise DatasetError(
            f"the JSON entry of panoptic file {escape(file)} lists segments without pixels: ids "
            f"{missing[:6].tolist()}{' and more' if len(missing) > 6 else ''}; {MISMATCH}"
        )
    return np.concatenate([[-1], order]).astype(np.int32)[position]


def _check_panoptic(annotations: Any, file: Path) -> None:
    """Raise an error if the JSON has COCO's instances format."""
    first = annotations[0] if isinstance(annotations, list) else None
    if isinstance(first, dict) and "segments_info" not in first and "segmentation" in first:
        raise DatasetError(
            f"{file} is a COCO instances JSON (an annotation per object, with polygons or RLE), "
            "not a panoptic one; set data.format: coco_instances"
        )


def _list_ids(values: NDArray[np.integer], counts: NDArray[np.integer]) -> str:
    listing = ", ".join(f"{v} ({n} pixels)" for v, n in zip(values[:6], counts[:6], strict=True))
    return listing + (f" and {len(values) - 6} more" if len(values) > 6 else "")


def _categories(
    config: CocoPanopticConfig, content: Mapping[str, Any], file: Path
) -> tuple[list[Category], Path]:
    """Return the categories, and the file that contains them."""
    if config.categories is None:
        values = content.get("categories")
    else:
        candidates = [config.root / config.categories, CONFIG_FOLDER / config.categories]
        file = next((path for path in candidates if path.is_file()), candidates[0])
        values = read_content(file, "data.categories")
        if isinstance(values, dict):
            values = values.get("categories")
    if not values:
        raise DatasetError(f"{file} has no categories; set data.categories to a JSON that has them")
    return list(entries(values, Category, "categories", file)), file
