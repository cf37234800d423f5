"""Results in files that other programs read: label maps, COCO panoptic and COCO instances."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import mfkernels
from maskformer.data import DatasetInfo
from maskformer.data.datasets.coco_masks import run_lengths
from maskformer.data.label_reader import id_to_rgb
from maskformer.errors import OutputError
from maskformer.inference.prediction import Prediction
from maskformer.output.output_folder import check_inside, check_subfolders
from maskformer.output.pictures import save_map
from maskformer.system.paths import OutputNames
from maskformer.system.text import encodable
from maskformer.system.writing import remove_partial_files, write_json

SUBFOLDERS = ("classes", "panoptic")
"""Of the output folder, for results."""
NUMBERED = ".????-????????.png"
"""A result of a process among several, which has no name yet."""


def remove_leftovers(folder: Path) -> None:
    """Removes what killed calls left in an output folder, half written or without a name.

    To be called before any process writes there.
    """
    places = [folder / name for name in SUBFOLDERS]
    for place in places:
        for file in place.glob(NUMBERED):
            file.unlink()
    inner = (path for place in places for path in place.rglob("*") if path.is_dir())
    remove_partial_files([folder, *places, *inner])


@dataclass
class Result:
    """What the JSON files say of one image.

    Attributes:
        has_classes: there is a label map.
        size: height and width of the panoptic map.
        segments: its `segments_info` in `panoptic.json`.
        instances: its entries in `instances.json`, without the image.
    """

    has_classes: bool = False
    size: tuple[int, int] | None = None
    segments: list[dict[str, Any]] | None = None
    instances: list[dict[str, Any]] | None = None


class ResultWriter:
    """Writes predictions into a folder; a context manager, the JSON files follow at its end.

        classes/NAME.png, classes.json    the data set's own number of each pixel's class, in the
                                          classes' colours (a palette) up to number 255; the classes
        panoptic/NAME.png, panoptic.json  COCO panoptic format; id = R + 256 G + 65536 B, 0 is void
        instances.json                    COCO results format, masks run-length encoded

    Every image gets a NAME and an id of its own, see `OutputNames`; `images` in `panoptic.json` and
    `file_name` in `instances.json` say which image that is. Nothing is written outside of the
    folder, and each file is complete or absent.

    Args:
        folder: where they go; made if need be.
        info: classes of the predictions.

    Raises:
        ValueError: one of the subfolders is a link to somewhere else.
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
        """Writes the JSON files, after an interruption too: what they list is complete."""
        if self._has_classes:
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
        """Writes whatever the prediction holds.

        Args:
            name: of the files, without suffix; may hold folders. A name that is taken, or could not
                be that of a file in the folder, is changed.
            image_id: what the JSON files call the image. An id that is taken becomes a text.
            file_name: of the image; `name` with `.jpg` unless given.

        Raises:
            OSError: the folder cannot be written.
            ValueError: the numbers of the classes do not fit into a label file.
        """
        own, number = self.take(name, image_id)
        self.collect(own, number, self.write(own, prediction), file_name)

    def take(self, name: str, image_id: int | str) -> tuple[str, int | str]:
        """The name and the id that the next image gets."""
        name = self._names.take(name)
        return name, self._unique_id(image_id, name)

    def write(self, name: str, prediction: Prediction) -> Result:
        """The PNGs alone, under a name that is no other image's; threads may do so.

        Raises:
            OSError, ValueError: as above.
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
            result.instances = list(self._describe_instances(prediction.instances))
        return result

    def collect(self, name: str, image_id: int | str, result: Result, file_name: str = "") -> None:
        """Lists in the JSON files what `write` wrote under a name."""
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
        """The PNGs that `write` wrote under a name."""
        kinds = {"classes": result.has_classes, "panoptic": result.segments is not None}
        return [self.folder / kind / f"{name}.png" for kind, there in kinds.items() if there]

    def rename(self, name: str, to: str, result: Result) -> None:
        """Gives the PNGs of a result another name.

        Raises:
            OSError, ValueError: as above.
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
        if numbers.dtype == np.uint8:  # a palette has no more colours
            colors = np.zeros((256, 3), np.uint8)
            colors[numbers] = self.info.colors
            image.putpalette(colors.tobytes())
        return image

    def _save_png(self, image: Image.Image, kind: str, name: str) -> None:
        file = self.folder / kind / f"{name}.png"
        check_inside(self.folder, file.parent)
        save_map(image, file)

    def _describe_instances(self, found: mfkernels.Instances) -> Iterator[dict[str, Any]]:
        for mask, label, score, (left, top, right, bottom) in zip(
            found.masks.cpu().numpy(),
            found.labels.tolist(),
            found.scores.tolist(),
            found.boxes.tolist(),
            strict=True,
        ):
            if mask.any():
                yield {
                    "category_id": self.info.category_ids[label],
                    "score": score,
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": encode_mask(mask),
                }


def describe_segments(
    ids: NDArray[np.integer], segments: Sequence[Mapping[str, Any]], info: DatasetInfo
) -> list[dict[str, Any]]:
    """The `segments_info` of the COCO panoptic format, with the score besides.

    Args:
        ids: `[H, W]` segment ids, 0 = void.
        segments: `id`, `category_id` (class) and `score` of each.
        info: gives the data set's own category ids.
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
    """The data set's own number of each class, in 8 bit if they fit, else in 16."""
    low, high = min(info.category_ids), max(info.category_ids)
    if low < 0 or high >= 2**16:
        raise OutputError(
            f"a label file holds the numbers 0..65535, the classes have {low}..{high}"
        )
    return np.asarray(info.category_ids, np.uint8 if high < 2**8 else np.uint16)


def categories(info: DatasetInfo) -> list[dict[str, Any]]:
    """The `categories` of the COCO formats."""
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


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run-length encoding of a mask `[H, W]`.

    From the fourth on, each length is
    written as its difference to the last but one; a number takes five bits a character, the lowest
    first, and a sixth bit that says whether more follow.
    """
    lengths = run_lengths(mask)
    lengths[3:] -= lengths[1:-2].copy()
    text = []
    for number in lengths.tolist():
        more = True
        while more:
            bits = number & 31
            number >>= 5
            more = number != (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + 32 * more))
    return {"size": list(mask.shape), "counts": "".join(text)}


def _boxes(ids: NDArray[np.integer], count: int) -> list[list[int]]:
    """Left, top, width and height of the segments 1..count of a map; zeros where one is empty."""
    ends = []
    for axis, side in ((1, ids.shape[1]), (0, ids.shape[0])):
        seen = np.zeros((count + 1, side), np.bool_)
        positions = np.arange(side)
        seen[ids, positions if axis else positions[:, None]] = True
        first, last = seen.argmax(1), side - seen[:, ::-1].argmax(1)
        ends.append(np.where(seen.any(1), (first, last - first), 0)[:, 1:])
    (left, width), (top, height) = ends
    return np.stack([left, top, width, height], -1).tolist()
