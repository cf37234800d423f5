"""COCO panoptic format: per split, images, PNGs whose colours are segment ids, and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.config import CocoPanopticConfig
from maskformer.data.errors import DatasetError
from maskformer.data.images import check_same_size, read_image, read_segment_ids
from maskformer.data.sample import DatasetInfo, Sample, Split, check_index
from maskformer.palette import Color, palette
from maskformer.paths import missing_files, name_inside
from maskformer.recipes import CONFIG_FOLDER
from maskformer.text import escape

MISMATCH = "PNG and JSON belong to different versions, or the PNG was resized"


class CocoPanoptic:
    """Images with things and stuff in COCO panoptic format.

    Classes are numbered in the order in which the categories are listed.

    Args:
        config: where the files are.
        split: which images, PNGs and JSON.

    Raises:
        DatasetError: a file or folder is missing, or the JSON does not follow the format.
    """

    def __init__(self, config: CocoPanopticConfig, split: Split) -> None:
        self.config = config
        places = config.train if split == "train" else config.val
        file = config.root / places.annotations
        content = _read_json(file, f"data.{split}.annotations")
        if not isinstance(content, dict) or not content.get("annotations"):
            raise DatasetError(f"{file} has no annotations; expected a COCO panoptic JSON")
        categories = _categories(config, content, file)
        self.info = _info(categories, file)
        class_of = {number: k for k, number in enumerate(self.info.category_ids)}
        self._images, self._panoptic = config.root / places.images, config.root / places.panoptic
        try:
            self._read_annotations(content, class_of, file)
        except (KeyError, TypeError) as error:
            raise DatasetError(
                f"{file} does not follow the COCO panoptic format: {error!r}"
            ) from error
        _check_present(self._images, self._image_names, config.root, f"data.{split}.images")
        _check_present(self._panoptic, self._png_names, config.root, f"data.{split}.panoptic")

    def _read_annotations(
        self, content: Mapping[str, Any], class_of: Mapping[int, int], file: Path
    ) -> None:
        entry = f"{file}: the file_name"
        image_names = {
            image["id"]: name_inside(self._images, image["file_name"], entry)
            for image in content.get("images", ())
        }
        annotations = content["annotations"]
        self._image_ids: list[int | str] = [annotation["image_id"] for annotation in annotations]
        self._png_names: list[str] = [
            name_inside(self._panoptic, annotation["file_name"], entry)
            for annotation in annotations
        ]
        self._image_names: list[str] = [
            image_names.get(number, Path(name).with_suffix(".jpg").as_posix())
            for number, name in zip(self._image_ids, self._png_names, strict=True)
        ]
        # Flat arrays: a million small dicts would be copied into every worker process.
        counts = [len(annotation["segments_info"]) for annotation in annotations]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        segments = [item for annotation in annotations for item in annotation["segments_info"]]
        unknown = sorted({item["category_id"] for item in segments} - set(class_of))
        if unknown:
            raise DatasetError(
                f"{file} has segments of the category ids {unknown[:8]}, which its categories do "
                "not list; set data.categories to the JSON that does"
            )
        self._ids = np.array([item["id"] for item in segments], np.int64)
        self._classes = np.array([class_of[item["category_id"]] for item in segments], np.int64)
        self._crowd = np.array([bool(item.get("iscrowd", 0)) for item in segments], np.bool_)

    @property
    def files(self) -> list[tuple[Path, Path]]:
        """Each image file and its PNG."""
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
        image = read_image(image_file)
        ids = read_segment_ids(png_file)
        check_same_size(image, image_file, ids, png_file)
        rows = slice(self._starts[index], self._starts[index + 1])
        return Sample(
            image=image,
            segments=torch.from_numpy(ids_to_segments(ids, self._ids[rows], png_file)),
            labels=torch.from_numpy(self._classes[rows].copy()),
            crowd=torch.from_numpy(self._crowd[rows].copy()),
            name=Path(self._image_names[index]).with_suffix("").as_posix(),
            image_id=self._image_ids[index],
            file_name=self._image_names[index],
        )


def ids_to_segments(
    ids: NDArray[np.int32], listed: NDArray[np.int64], file: Path
) -> NDArray[np.int32]:
    """Replaces the ids of a PNG by positions in the JSON's list; 0 becomes -1.

    Raises:
        DatasetError: an id is listed twice or is 0, has no pixel, or is in the PNG only.
    """
    order = np.argsort(listed, kind="stable")
    table = np.concatenate([[0], listed[order]])
    if (table[1:] <= table[:-1]).any():
        raise DatasetError(
            f"the JSON entry of {file} lists a segment id twice or an id below 1: "
            f"{sorted(listed.tolist())}"
        )
    position = np.searchsorted(table, ids).clip(max=len(table) - 1)
    stray = table[position] != ids
    if stray.any():
        values, counts = np.unique(ids[stray], return_counts=True)
        raise DatasetError(
            f"panoptic file {file} has segment ids that its JSON entry does not list: "
            f"{_list_ids(values, counts)}; {MISMATCH}"
        )
    pixels = np.bincount(position.ravel(), minlength=len(table))
    missing = table[1:][pixels[1:] == 0]
    if len(missing):
        raise DatasetError(
            f"the JSON entry of panoptic file {file} lists segments without a pixel: ids "
            f"{missing[:6].tolist()}{' and more' if len(missing) > 6 else ''}; {MISMATCH}"
        )
    return np.concatenate([[-1], order]).astype(np.int32)[position]


def _list_ids(values: NDArray[np.integer], counts: NDArray[np.integer]) -> str:
    listing = ", ".join(f"{v} ({n} pixels)" for v, n in zip(values[:6], counts[:6], strict=True))
    return listing + (f" and {len(values) - 6} more" if len(values) > 6 else "")


def _read_json(file: Path, key: str) -> Any:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"there is no file {file}; set data.root or {key}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read as JSON: {error}") from None


def _categories(
    config: CocoPanopticConfig, content: Mapping[str, Any], file: Path
) -> Sequence[Mapping[str, Any]]:
    if config.categories is None:
        categories = content.get("categories")
        if not categories:
            raise DatasetError(
                f"{file} carries no categories; set data.categories to a JSON that does"
            )
        return list(categories)
    places = [config.root / config.categories, CONFIG_FOLDER / config.categories]
    found = next((place for place in places if place.is_file()), places[0])
    categories = _read_json(found, "data.categories")
    return list(categories["categories"] if isinstance(categories, dict) else categories)


def _info(categories: Sequence[Mapping[str, Any]], file: Path) -> DatasetInfo:
    try:
        colors = palette(len(categories))
        info = DatasetInfo(
            classes=tuple(str(item["name"]) for item in categories),
            things=frozenset(k for k, item in enumerate(categories) if item["isthing"]),
            colors=tuple(
                _color(item["color"]) if "color" in item else colors[k]
                for k, item in enumerate(categories)
            ),
            category_ids=tuple(int(item["id"]) for item in categories),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"the categories of {file} must each have id, name and isthing; error at {error!r}"
        ) from error
    if len(set(info.category_ids)) != len(info.category_ids):
        raise DatasetError(f"the categories of {file} list a category id twice")
    return info


def _color(rgb: Sequence[int]) -> Color:
    red, green, blue = rgb
    return int(red), int(green), int(blue)


def _check_present(folder: Path, names: Sequence[str], root: Path, key: str) -> None:
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}; set data.root or {key}")
    missing = missing_files(folder, names, root, f"{key}: the JSON's file_name")
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(names)} files that the JSON names are missing from {folder}, "
            f"first {escape(missing[0])}; set {key}, or take the entries out of the JSON"
        )
