"""COCO instances format: per split, images and a JSON file with the mask of each object."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskformer.config.schema import CocoInstancesConfig, CocoInstancesSplit
from maskformer.data.datasets.coco_categories import Categories, check_present, unlisted_images
from maskformer.data.datasets.coco_json import (
    Instance,
    InstanceCategory,
    SizedImage,
    entries,
    read_content,
)
from maskformer.data.datasets.coco_masks import (
    are_normalised,
    check_pycocotools,
    encode_mask,
    mask_of_runs,
    paint_runs,
    runs_of_segmentation,
)
from maskformer.data.datasets.split_files import take_share
from maskformer.data.image_files.orientation import UPRIGHT
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.labels.label_table import VOID
from maskformer.data.sample import (
    ObjectMask,
    Sample,
    Split,
    check_index,
    keep_segments,
    segment_areas,
)
from maskformer.errors import DatasetError
from maskformer.system.paths import name_inside
from maskformer.system.text import escape

FORM = "instances"


class _Painting(NamedTuple):
    """The segments of an image before those without pixels are removed.

    Attributes:
        segments: `[H, W]`, an index into `labels` for each pixel.
        labels: `[T]`, the class of each segment.
        crowd: `[T]`, whether each segment is a crowd.
        empty_objects: the number of objects whose mask is empty.
        objects: the full masks of the things, for validation only.
    """

    segments: Tensor
    labels: Tensor
    crowd: Tensor
    empty_objects: int
    objects: tuple[ObjectMask, ...]


class CocoInstances:
    """Images whose objects are polygons or run-length encoded masks in a COCO JSON file.

    Objects are drawn in the order of the file, crowds first, so that later objects are on top.
    Pixels outside of all objects are background or void.

    Args:
        config: where the files are, and whether there is a background class.
        split: the split.

    Attributes:
        notes: a note on images that the JSON file does not list, if there are any.

    Raises:
        DatasetError: a file or folder is missing, the JSON does not follow the format, or
            pycocotools is not installed.
    """

    def __init__(self, config: CocoInstancesConfig, split: Split) -> None:
        check_pycocotools()
        self._reader = ImageReader.from_config(config)
        paths, key = config.train, "data.train"
        if split == "val" and isinstance(config.val, CocoInstancesSplit):
            paths, key = config.val, "data.val"
        self._file = config.root / paths.annotations
        content = read_content(self._file, f"{key}.annotations")
        _check_instances(content, self._file)
        listed = entries(
            content.get("categories"), InstanceCategory, "categories", self._file, FORM
        )
        classes = Categories.from_list([*listed], config.label_map, self._file)
        self._background = VOID
        if config.background is not None:
            classes, self._background = classes.with_background(config.background)
        self.info = classes.info
        self._folder = config.root / paths.images
        self._keeps_objects = split == "val"
        self._images = self._read_images(content.get("images"))
        self._read_objects(content["annotations"], classes)
        listed_names = [image.file_name for image in self._images]
        self.notes = unlisted_images(self._folder, listed_names)
        if isinstance(config.val, float):
            share, seed = config.val, config.seed
            self._images = take_share(self._images, share, seed, split, lambda i: i.file_name)
        names = [image.file_name for image in self._images]
        check_present(self._folder, names, config.root, f"{key}.images")

    def _read_images(self, values: Any) -> list[SizedImage]:
        images = []
        for image in entries(values, SizedImage, "images", self._file, FORM):
            name = name_inside(self._folder, image.file_name, f"{self._file}: the file_name")
            images.append(image.model_copy(update={"file_name": name}))
        for key in ("id", "file_name"):
            times = Counter(getattr(image, key) for image in images)
            twice = [escape(value) for value, count in times.items() if count > 1]
            if twice:
                raise DatasetError(f"{self._file} lists two images with the {key} {twice[0]}")
        return images

    def _read_objects(self, values: Any, classes: Categories) -> None:
        known = {image.id for image in self._images}
        rows: dict[int | str, list[int]] = {}
        # Flat arrays, because every worker process would copy a million small Python objects.
        ends, labels, crowd, shapes = array("q", [0]), array("q"), array("b"), bytearray()
        areas = array("d")
        for row, entry in enumerate(entries(values, Instance, "annotations", self._file, FORM)):
            key = f"annotations[{row}]"
            if entry.image_id not in known:
                raise DatasetError(
                    f"{self._file}: {key} has the image_id {escape(entry.image_id)}, which is not "
                    "in the file's images"
                )
            if entry.category_id not in classes.class_of:
                raise DatasetError(
                    f"{self._file}: {key} has the category_id {entry.category_id}, which is not in "
                    "the file's categories"
                )
            rows.setdefault(entry.image_id, []).append(row)
            labels.append(classes.class_of[entry.category_id])
            crowd.append(entry.iscrowd)
            areas.append(entry.area)
            shapes += json.dumps(entry.segmentation).encode()
            ends.append(len(shapes))
        self._objects = {image: np.array(of_image) for image, of_image in rows.items()}
        self._ends, self._shapes = np.array(ends), bytes(shapes)
        self._labels, self._crowd = np.array(labels), np.array(crowd, np.bool_)
        self._areas = np.array(areas)

    @property
    def files(self) -> list[tuple[Path]]:
        """The image files."""
        return [(self._folder / image.file_name,) for image in self._images]

    @property
    def num_images(self) -> int:
        return len(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        entry = self._images[check_index(index, len(self))]
        file = self._folder / entry.file_name
        image, frame = self._reader.read(file)
        height, width = image.shape[-2:]
        listed = (entry.height or height, entry.width or width)
        frame.orientation_of_labels(listed, UPRIGHT, escape(self._file))
        if listed != (height, width):
            raise DatasetError(
                f"image file {escape(file)} is {width}x{height} pixels, but {escape(self._file)} "
                f"says {entry.width}x{entry.height}: it was resized, or rotated after it was "
                "labelled (EXIF orientation is applied)"
            )
        segments, labels, crowd, empty, objects = self._paint(entry.id, height, width)
        keep = (segment_areas(segments, len(labels)) > 0) & (labels != VOID)
        return Sample(
            image=image,
            segments=keep_segments(segments, keep),
            labels=labels[keep],
            crowd=crowd[keep],
            name=Path(entry.file_name).with_suffix("").as_posix(),
            image_id=entry.id,
            file_name=entry.file_name,
            empty_segments=empty,
            objects=objects if self._keeps_objects else None,
        )

    def _paint(self, image: int | str, height: int, width: int) -> _Painting:
        objects: list[ObjectMask] = []
        rows = self._objects.get(image, np.empty(0, np.int64))
        rows = rows[np.argsort(~self._crowd[rows], kind="stable")]
        canvas = np.zeros(height * width, np.int32)
        labels, crowd, empty = [self._background], [False], 0
        stuff = {self._background: 0}  # the segment of each stuff class
        for row in rows.tolist():
            runs = self._read_runs(row, height, width)
            pixels = sum(runs[1::2])
            empty += pixels == 0
            label = int(self._labels[row])
            if self._keeps_objects and label in self.info.things and pixels > 0:
                area = float(self._areas[row])
                area = area if math.isfinite(area) else float(pixels)
                packed = encode_mask(mask_of_runs(runs, height, width))
                objects.append(ObjectMask(label, packed, area, bool(self._crowd[row])))
            number = stuff.get(label, len(labels))
            if number == len(labels):
                labels.append(label)
                crowd.append(bool(self._crowd[row]) and label in self.info.things)
            if label not in self.info.things:
                stuff[label] = number
            paint_runs(canvas, runs, number)
        segments = torch.from_numpy(np.ascontiguousarray(canvas.reshape(width, height).T))
        kinds = torch.tensor(labels), torch.tensor(crowd)
        return _Painting(segments, *kinds, empty, tuple(objects))

    def _read_runs(self, row: int, height: int, width: int) -> list[int]:
        shape = json.loads(self._shapes[self._ends[row] : self._ends[row + 1]])
        try:
            return runs_of_segmentation(shape, height, width)
        except DatasetError as error:
            raise DatasetError(f"{self._file}: annotations[{row}]: {error}") from None


def _check_instances(content: Any, file: Path) -> None:
    """Raise an error that says what the JSON holds, if that is not a list of objects with masks."""
    values = content.get("annotations") if isinstance(content, dict) else None
    if not values:
        raise DatasetError(f"{file} has no annotations; expected a COCO instances JSON")
    first = values[0] if isinstance(values, list) else None
    if isinstance(first, dict) and "segments_info" in first:
        raise DatasetError(
            f"{file} is a COCO panoptic JSON (segments in PNG files), not an instances JSON; set "
            "data.format: coco_panoptic"
        )
    if not isinstance(values, list):
        return
    segmentations = [value.get("segmentation") for value in values if isinstance(value, dict)]
    if not any(segmentations):
        raise DatasetError(
            f"{file} has boxes only: no annotation has a segmentation, but segmentation is trained "
            "on masks"
        )
    if are_normalised(segmentations):
        raise DatasetError(
            f"{file}: no coordinate of a polygon is above 1, expected pixels; they are probably "
            "relative to the image size: multiply each x by its width and each y by its height"
        )
