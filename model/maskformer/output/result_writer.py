"""Writing results in standard formats: label maps, COCO panoptic and COCO instances."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import mfkernels
from maskformer.data import DatasetInfo
from maskformer.data.datasets.coco_masks import encode_mask
from maskformer.data.label_reader import id_to_rgb
from maskformer.errors import OutputError
from maskformer.inference.prediction import Prediction
from maskformer.output.output_folder import check_inside, check_subfolders
from maskformer.output.pictures import save_map
from maskformer.system.paths import OutputNames
from maskformer.system.text import encodable
from maskformer.system.writing import remove_partial_files, write_json

SUBFOLDERS = ("classes", "panoptic")
"""Subfolders of the output folder."""
NUMBERED = ".????-????????.png"
"""Pattern of the temporary names of results in `SharedResults`."""


def remove_leftovers(folder: Path) -> None:
    """Remove the partial files, and the results with temporary names, of killed calls.

    This must be called before any process writes to the folder.
    """
    places = [folder / name for name in SUBFOLDERS]
    for place in places:
        for file in place.glob(NUMBERED):
            file.unlink()
    inner = (path for place in places for path in place.rglob("*") if path.is_dir())
    remove_partial_files([folder, *places, *inner])


@dataclass
class Result:
    """The contents of the JSON files for one image.

    Attributes:
        has_classes: whether there is a label map.
        size: height and width of the panoptic map.
        segments: the `segments_info` in `panoptic.json`.
        instances: the entries in `instances.json`, without the keys of the image.
    """

    has_classes: bool = False
    size: tuple[int, int] | None = None
    segments: list[dict[str, Any]] | None = None
    instances: list[dict[str, Any]] | None = None


class ResultWriter:
    """Writes predictions into a folder. It is a context manager, which writes the JSON files at its
    end.

        classes/NAME.png, classes.json    the category id of each pixel, with the colours of the
                                          classes as palette for ids up to 255; the classes
        panoptic/NAME.png, panoptic.json  COCO panoptic format; id = R + 256 G + 65536 B, 0 is void
        instances.json, classes.json      COCO results format, masks run-length encoded; the classes

    Every image gets a unique NAME (see `OutputNames`) and a unique id; `images` in `panoptic.json`
    and `file_name` in `instances.json` map them to the image. Nothing is written outside of the
    folder, and each file is written atomically.

    Args:
        folder: the output folder, which is created if necessary.
        info: the classes of the predictions.

    Raises:
        ValueError: a subfolder is a link to a place outside of the folder.
    """

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        check_subfolders(folder, SUBFOLDERS)
        self.folder = folder
        self.info = info
        self._names = OutputNames()
        self._ids: set[str] = set()
        self._has_classes = False
        self._images: list[dict[str, Any]] = []
        self._panoptic: list[dict[str, Any]] | None = None
        self._instances: list[dict[str, Any]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Write the JSON files, also after an interruption; they list complete results only."""
        if self._has_classes or self._instances is not None:
            write_json(self.folder / "classes.json", categories(self.info), indent=1)
        if self._panoptic is not None:
            content = {
                "images": self._images,
                "annotations": self._panoptic,
                "categories": categories(self.info),
            }
            write_json(self.folder / "panoptic.json", content)
        if self._instances is not None:
            write_json(self.folder / "instances.json", self._instances)

    def add(
        self, name: str, image_id: int | str, prediction: Prediction, file_name: str = ""
    ) -> None:
        """Write all parts of a prediction.

        Args:
            name: the name of the files without suffix, which may include folders. It is changed if
                it is taken, or not valid for a file in the folder.
            image_id: the id of the image in the JSON files. If it is taken, a text is used instead.
            prediction: the prediction.
            file_name: the file name of the image; by default, `name` with `.jpg`.

        Raises:
            OSError: the folder cannot be written.
            ValueError: a category id does not fit into a label file.
        """
        unique_name, unique_id = self.take(name, image_id)
        self.collect(unique_name, unique_id, self.write(unique_name, prediction), file_name)

    def take(self, name: str, image_id: int | str) -> tuple[str, int | str]:
        """Reserve a unique name and id for the next image."""
        name = self._names.take(name)
        return name, self._unique_id(image_id, name)

    def write(self, name: str, prediction: Prediction) -> Result:
        """Write only the PNGs, under a unique name. May be called in several threads.

        Raises:
            OSError, ValueError: as in `add`.
        """
        result = Result()
        if prediction.classes is not None:
            self._save_png(self._label_image(prediction.classes), "classes", name)
            result.has_classes = True
        if prediction.panoptic is not None:
            ids, segments = prediction.panoptic
            numbers = ids.cpu().numpy()
            self._save_png(Image.fromarray(id_to_rgb(numbers)), "panoptic", name)
            result.size = (len(numbers), len(numbers[0]))
            result.segments = describe_segments(numbers, segments, self.info)
        if prediction.instances is not None:
            result.instances = describe_instances(prediction.instances, self.info)
        return result

    def collect(self, name: str, image_id: int | str, result: Result, file_name: str = "") -> None:
        """Add the result of `write` for a name to the JSON files."""
        file_name = encodable(file_name or f"{name}.jpg")
        self._has_classes |= result.has_classes
        if result.size is not None and result.segments is not None:
            self._panoptic = self._panoptic or []
            height, width = result.size
            self._images.append(
                {"id": image_id, "file_name": file_name, "height": height, "width": width}
            )
            self._panoptic.append(
                {
                    "image_id": image_id,
                    "file_name": f"{name}.png",
                    "segments_info": result.segments,
                }
            )
        if result.instances is not None:
            self._instances = self._instances or []
            image = {"image_id": image_id, "file_name": file_name}
            self._instances.extend({**image, **found} for found in result.instances)

    def files(self, name: str, result: Result) -> list[Path]:
        """Return the PNGs that `write` wrote for a name."""
        kinds = {"classes": result.has_classes, "panoptic": result.segments is not None}
        return [self.folder / kind / f"{name}.png" for kind, there in kinds.items() if there]

    def rename(self, name: str, to: str, result: Result) -> None:
        """Rename the PNGs of a result.

        Raises:
            OSError, ValueError: as in `add`.
        """
        for file, other in zip(self.files(name, result), self.files(to, result), strict=True):
            other.parent.mkdir(parents=True, exist_ok=True)
            check_inside(self.folder, other.parent)
            file.replace(other)

    def _unique_id(self, image_id: int | str, name: str) -> int | str:
        wanted: int | str = encodable(image_id) if isinstance(image_id, str) else image_id
        number = 1
        while json.dumps(wanted) in self._ids:
            wanted = name if number == 1 else f"{name}_{number}"
            number += 1
        self._ids.add(json.dumps(wanted))
        return wanted

    def _label_image(self, classes: Tensor) -> Image.Image:
        numbers = label_numbers(self.info)
        image = Image.fromarray(numbers[classes.cpu().numpy()])
        if numbers.dtype == np.uint8:  # palettes exist for 8 bits only
            colors = np.zeros((256, 3), np.uint8)
            colors[numbers] = self.info.colors
            image.putpalette(colors.tobytes())
        return image

    def _save_png(self, image: Image.Image, kind: str, name: str) -> None:
        file = self.folder / kind / f"{name}.png"
        check_inside(self.folder, file.parent)
        save_map(image, file)


def describe_instances(found: mfkernels.Instances, info: DatasetInfo) -> list[dict[str, Any]]:
    """Return entries of COCO's results format without the image keys. Empty masks are omitted.

    Args:
        found: the instances of one image.
        info: gives the data set's own category ids.
    """
    return [
        {
            "category_id": info.category_ids[label],
            "score": score,
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": encode_mask(mask),
        }
        for mask, label, score, (left, top, right, bottom) in zip(
            found.masks.cpu().numpy(),
            found.labels.tolist(),
            found.scores.tolist(),
            found.boxes.tolist(),
            strict=True,
        )
        if mask.any()
    ]


def describe_segments(
    ids: NDArray[np.integer], segments: Sequence[Mapping[str, Any]], info: DatasetInfo
) -> list[dict[str, Any]]:
    """Return the `segments_info` of COCO's panoptic format, with scores added.

    Args:
        ids: `[H, W]`, the segment ids, 0 for void.
        segments: the `id`, `category_id` (class) and `score` of each segment.
        info: the classes, with the data set's category ids.
    """
    top = max((segment["id"] for segment in segments), default=0)
    areas = np.bincount(ids.ravel(), minlength=top + 1)
    boxes = _boxes(ids, top)
    return [
        {
            "id": segment["id"],
            "category_id": info.category_ids[segment["category_id"]],
            "iscrowd": 0,
            "area": int(areas[segment["id"]]),
            "bbox": boxes[segment["id"] - 1],
            "score": segment["score"],
        }
        for segment in segments
    ]


def label_numbers(info: DatasetInfo) -> NDArray[np.unsignedinteger]:
    """Return the data set's category id of each class, with 8 bits if they fit, else with 16."""
    low, high = min(info.category_ids), max(info.category_ids)
    if low < 0 or high >= 2**16:
        raise OutputError(
            f"label files can store the numbers 0..65535, but the classes have {low}..{high}"
        )
    return np.asarray(info.category_ids, np.uint8 if high < 2**8 else np.uint16)


def categories(info: DatasetInfo) -> list[dict[str, Any]]:
    """Return the `categories` of the COCO formats."""
    return [
        {
            "id": number,
            "name": encodable(name),
            "isthing": int(k in info.things),
            "color": list(color),
        }
        for k, (number, name, color) in enumerate(
            zip(info.category_ids, info.classes, info.colors, strict=True)
        )
    ]


def _boxes(ids: NDArray[np.integer], count: int) -> list[list[int]]:
    """Return left, top, width and height of the segments 1..count; zeros for empty segments."""
    ends = []
    for axis, side in ((1, ids.shape[1]), (0, ids.shape[0])):
        seen = np.zeros((count + 1, side), np.bool_)
        positions = np.arange(side)
        seen[ids, positions if axis else positions[:, None]] = True
        first, last = seen.argmax(1), side - seen[:, ::-1].argmax(1)
        ends.append(np.where(seen.any(1), (first, last - first), 0)[:, 1:])
    (left, width), (top, height) = ends
    return np.stack([left, top, width, height], -1).tolist()
