"""Writes miniature data sets in the official archives' layouts: real names, few small images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from maskformer.data.label_reader import id_to_rgb

Labels = NDArray[Any]
ODD = (45, 67)
"""Height and width."""


def patches(values: list[int], size: tuple[int, int] = ODD, seed: int = 0) -> Labels:
    """A label map with one vertical stripe per value; its middle row holds only the first value."""
    order = np.random.default_rng(seed).permutation(values)
    height, width = size
    row = order[np.arange(width) * len(values) // width]
    labels = np.tile(row, (height, 1))
    labels[height // 2] = values[0]
    return labels


def save(file: Path, pixels: NDArray[Any], palette: list[int] | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(file)


def save_photo(file: Path, size: tuple[int, int] = ODD, bands: int = 3) -> None:
    """Save random noise, never a single colour; a fourth band is an opaque alpha channel."""
    pixels = np.random.default_rng(len(file.name)).integers(0, 256, (*size, bands), np.uint8)
    pixels[..., 3:] = 255
    save(file, pixels)


def write_cityscapes(root: Path) -> None:
    """`leftImg8bit` (one image with an alpha channel) and `gtFine` with all its files."""
    frames = {
        "train/aachen/aachen_000000_000019": 3,
        "train/zurich/zurich_000121_000019": 4,
        "val/frankfurt/frankfurt_000001_083852": 3,
    }
    for seed, (frame, bands) in enumerate(frames.items()):
        save_photo(root / "leftImg8bit" / f"{frame}_leftImg8bit.png", bands=bands)
        labels = patches([0, 4, 7, 8, 11, 21, 23, 24, 26, 33], seed=seed).astype(np.uint8)
        truth = root / "gtFine" / f"{frame}_gtFine_"
        save(truth.with_name(f"{truth.name}labelIds.png"), labels)
        instances = np.where(labels >= 24, labels.astype(np.uint16) * 1000, labels)
        instances[: len(labels) // 2][labels[: len(labels) // 2] == 26] += 1
        instances[:5][labels[:5] == 24] = 24  # a group of people, which has no instance number
        save(truth.with_name(f"{truth.name}instanceIds.png"), instances.astype(np.uint16))
        save(truth.with_name(f"{truth.name}color.png"), np.zeros((*ODD, 4), np.uint8))
        truth.with_name(f"{truth.name}polygons.json").write_text("{}")


def write_mapillary(root: Path) -> None:
    """JPEG images, labels with a palette (65: void) and 16-bit instance maps."""
    palette = np.random.default_rng(0).permutation(np.arange(66 * 3) % 251).tolist()
    names = {"training": ["-0bE1Tw_7vOm1aSmA0LnyA", "_8aTlK3wX2i0gC4ZQ0rj9w"], "validation": ["a0"]}
    for split, listed in names.items():
        for seed, name in enumerate(listed):
            save_photo(root / split / "images" / f"{name}.jpg", (39, 80))
            labels = patches([0, 13, 19, 55, 64, 65], (39, 80), seed).astype(np.uint8)
            save(root / split / "labels" / f"{name}.png", labels, palette)
            save(root / split / "instances" / f"{name}.png", labels.astype(np.uint16) * 256)


def write_coco_stuff_10k(root: Path) -> None:
    """JPEG images, one of them greyscale, `.mat` labels (0: unlabelled), and split lists."""
    numbers = {"train": [77, 92], "test": [64]}
    for split, listed in numbers.items():
        names = [f"COCO_train2014_{number:012d}" for number in listed]
        (root / "imageLists").mkdir(parents=True, exist_ok=True)
        (root / "imageLists" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for seed, name in enumerate(names):
            save_photo(root / "images" / f"{name}.jpg")
            labels = patches([0, 1, 13, 90, 92, 182], seed=seed).astype(np.uint8)
            (root / "annotations").mkdir(exist_ok=True)
            file = root / "annotations" / f"{name}.mat"
            texts = np.array(["a", "group"], object)
            savemat(file, {"S": labels, "regionNames": texts}, do_compression=bool(seed))
    save(root / "images" / "COCO_train2014_000000000077.jpg", np.zeros(ODD, np.uint8))


def write_ade20k(root: Path) -> None:
    """`images`, `annotations` (0: void) and `annotations_instance` of ADEChallengeData2016."""
    names = {"training": ["ADE_train_00000001", "ADE_train_00000002"]}
    names["validation"] = ["ADE_val_00000001"]
    for split, listed in names.items():
        for seed, name in enumerate(listed):
            save_photo(root / "images" / split / f"{name}.jpg")
            labels = patches([0, 1, 3, 8, 13, 150], seed=seed).astype(np.uint8)
            save(root / "annotations" / split / f"{name}.png", labels)
            objects = np.zeros((*ODD, 3), np.uint8)
            # A bed, a person in front of stuff, and a flag: categories 1, 4 and 100.
            for number, (value, category) in enumerate([(8, 1), (13, 4), (150, 100)], 1):
                objects[labels == value] = category, number, 0
            objects[:4, :9] = 4, 9, 0
            save(root / "annotations_instance" / split / f"{name}.png", objects)


def write_ade20k_full(root: Path) -> None:
    """The tree of ADE20K_2021_17_01; one image is large enough to be shrunk."""
    frames = {
        "training/urban/street/ADE_train_00016869": ODD,
        "training/home_or_hotel/bathroom__home/ADE_train_00000009": (515, 700),
        "validation/nature_landscape/wild_field/ADE_val_00000123": (70, 41),
    }
    for seed, (frame, size) in enumerate(frames.items()):
        stem = root / "images" / "ADE" / frame
        save_photo(stem.with_suffix(".jpg"), size)
        # Wall, building, sky, a wheel (which is only a part of a car), and nothing.
        codes = patches([2978, 312, 2420, 2940, 0], size, seed)
        blue = np.arange(codes.size).reshape(codes.shape) % 256
        colors = np.stack([codes // 256 * 10 + 3, codes % 256, blue], -1).astype(np.uint8)
        save(stem.with_name(f"{stem.name}_seg.png"), colors)
        save(stem.with_name(f"{stem.name}_parts_1.png"), colors)
        stem.with_suffix(".json").write_text("{}")
        save(stem / "instance_000_ADE.png", (codes > 0).astype(np.uint8) * 255)
    (root / "index_ade20k.pkl").write_bytes(b"not needed, not opened")
    (root / "objects.txt").write_text("")


def write_coco_panoptic(root: Path) -> None:
    """`train2017`, `panoptic_train2017` and the JSON files, with a crowd and void."""
    categories = [
        {"id": number, "name": name, "isthing": int(number < 92)}
        for number, name in [(1, "person"), (3, "car"), (92, "banner"), (200, "rug-merged")]
    ]
    for split, numbers in {"train2017": [9, 25], "val2017": [139]}.items():
        entries, images = [], []
        for number in numbers:
            name = f"{number:012d}"
            save_photo(root / split / f"{name}.jpg")
            ids = patches([0, 5, 70000, 300, 9])
            save(root / f"panoptic_{split}" / f"{name}.png", id_to_rgb(ids))
            segments = [
                {"id": k, "category_id": c, "iscrowd": crowd, "area": int((ids == k).sum())}
                for k, c, crowd in [(5, 1, 0), (70000, 3, 1), (300, 92, 0), (9, 200, 0)]
            ]
            entry = {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
            entries.append(entry)
            images.append({"id": number, "file_name": f"{name}.jpg", "height": 45, "width": 67})
        content = {"images": images, "annotations": entries, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
