"""Checks COCO panoptic results entry by entry against the format published on cocodataset.org and
against the errors that panopticapi's evaluation raises.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskformer.data.sample import Sample, look_up


def check_panoptic(annotations: Path, folder: Path) -> list[dict[str, Any]]:
    """Assert that JSON file and PNG folder are valid and consistent; return the annotations."""
    content = json.loads(annotations.read_text())
    kinds = {category["id"]: category["isthing"] for category in content["categories"]}
    assert all(type(number) is int and kind in (0, 1) for number, kind in kinds.items())
    entries: list[dict[str, Any]] = content["annotations"]
    assert len({entry["image_id"] for entry in entries}) == len(entries)
    listed = {entry["file_name"] for entry in entries}
    assert listed == {file.relative_to(folder).as_posix() for file in folder.rglob("*.png")}
    for entry in entries:
        assert set(entry) == {"image_id", "file_name", "segments_info"}
        with Image.open(folder / entry["file_name"]) as image:
            assert image.format == "PNG"
            assert image.mode == "RGB"
            pixels = np.asarray(image).astype(np.int64)
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 256 * 256 * pixels[..., 2]
        segments = entry["segments_info"]
        numbers = [segment["id"] for segment in segments]
        assert sorted(numbers) == sorted(set(np.unique(ids).tolist()) - {0})
        stuff = [s["category_id"] for s in segments if not kinds[s["category_id"]]]
        assert len(stuff) == len(set(stuff))  # at most one segment per stuff category
        for segment in segments:
            names = ("id", "category_id", "area", "iscrowd", *segment["bbox"])
            values = [segment[name] if isinstance(name, str) else name for name in names]
            assert all(type(value) is int for value in values)
            assert 0 < segment["id"] < 256**3
            assert segment["iscrowd"] == 0
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum()
            rows, columns = np.nonzero(mask)
            left, top, width, height = segment["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
    return entries


def ground_truth_as_panoptic(sample: Sample) -> tuple[Tensor, list[dict[str, int]]]:
    """A sample's ground-truth segments in the format of a prediction; crowds become void."""
    numbers = torch.where(sample.crowd, 0, torch.arange(1, len(sample.labels) + 1)).int()
    ids = look_up(numbers, sample.segments).clamp(min=0)
    kept = [(k, c) for k, c in enumerate(sample.labels.tolist()) if not sample.crowd[k]]
    return ids, [{"id": k + 1, "category_id": c} for k, c in kept]
