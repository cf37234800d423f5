"""Detection of the data set in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskformer.data.layout.classes import LabelMeaning, meaning_of_colors, read_meaning
from maskformer.data.layout.coco_layout import CocoFile, coco_files, is_polygon_file
from maskformer.data.layout.folder_layout import (
    MAX_COLORS,
    FolderLayout,
    common_folder,
    folder_layouts,
    rejected_labels,
)
from maskformer.data.layout.pairs import Folders, Pair, image_folders, pairs
from maskformer.data.layout.pixels import Pixels, sample_pixels
from maskformer.data.layout.split_names import without_split
from maskformer.errors import DatasetError
from maskformer.system.listing import MARKERS, Listing, list_folder
from maskformer.system.text import escape

SHOWN = 3


@dataclass(frozen=True)
class Survey:
    """The data set in a folder.

    Attributes:
        root: the folder.
        layout: the label files, or COCO's JSON files of train and val (None if there is only one).
        meaning: the classes of the values in label files.
        pixels: the properties of the images.
        images: the number of training images, including those that are held out for validation.
        note: what was not inspected, or empty.
    """

    root: Path
    layout: FolderLayout | tuple[CocoFile, CocoFile | None]
    meaning: LabelMeaning | None
    pixels: Pixels
    images: int
    note: str = ""


def survey(root: Path) -> Survey:
    """Find the data set in or below a folder by listing it and reading a few of its files.

    Raises:
        DatasetError: the folder cannot be read, or holds no data set or several.
    """
    listing = list_folder(root)
    if any(name.startswith(MARKERS) for name in listing.hidden):
        raise DatasetError(
            f"{root} is a run or holds results of predict or evaluate, expected a folder of images "
            "with ground-truth labels"
        )
    files = listing.files
    folders, count = image_folders(files)
    note = ""
    if count > len(folders):
        note = f"of {count:,} folders with images, only the upper {len(folders):,} were inspected"
    coco = coco_files(root, folders, files)
    paired = pairs(folders)
    described = {_top(file.annotations) for file in coco} - {"."}
    layouts = [
        layout
        for layout in folder_layouts(root, folders, paired, files)
        if not coco or _folder(layout) not in {".", *described}
    ]
    tops = (without_split(_top(file.annotations)) for file in coco)
    found = [*tops, *map(_folder, layouts)]
    if not found:
        layouts = [
            layout
            for layout in folder_layouts(root, folders, paired, files, colors=True)
            if len(layout.values) <= MAX_COLORS
        ]
        found = [*map(_folder, layouts)]
    if not found:
        raise DatasetError(_nothing(root, listing, folders, paired) + (note and f"; {note}"))
    if len(layouts) > 1 or len({*found}) > 1:
        names = ", ".join(map(escape, dict.fromkeys(found)))
        raise DatasetError(f"{root} holds several data sets: {names}; pass one of them")
    if coco:
        return replace(_coco_survey(root, coco, folders), note=note)
    return replace(_folder_survey(root, layouts[0], folders), note=note)


def _coco_survey(root: Path, coco: Sequence[CocoFile], folders: Folders) -> Survey:
    train, val = _coco_splits(coco, root)
    pixels = sample_pixels(root, [f"{train.images}/{name}" for name in folders[train.images]])
    return Survey(root, (train, val), None, pixels, train.count)


def _folder_survey(root: Path, layout: FolderLayout, folders: Folders) -> Survey:
    pair = layout.train
    names = [name for name in folders[pair.images] if pair.has_image(name)]
    if layout.colors:
        meaning = meaning_of_colors(layout.values)
    else:
        meaning = read_meaning(root, pair.partners, layout.values)
    pixels = sample_pixels(root, [f"{pair.images}/{name}" for name in names])
    return Survey(root, layout, meaning, pixels, len(names))


def _folder(layout: FolderLayout) -> str:
    return common_folder(layout.train.images, layout.train.partners)


def _top(path: str) -> str:
    return path.rpartition("/")[0] or "."


def _coco_splits(coco: Sequence[CocoFile], root: Path) -> tuple[CocoFile, CocoFile | None]:
    kinds = {file.kind for file in coco}
    # Panoptic data sets also contain an instances JSON for the same images.
    kind = "coco_panoptic" if "coco_panoptic" in kinds else "coco_instances"
    files = [file for file in coco if file.kind == kind]
    train = [file for file in files if "train" in file.annotations.lower()]
    val = [file for file in files if "val" in file.annotations.lower()]
    if train and val:
        return train[0], val[0]
    if len(files) > 1:
        names = ", ".join(escape(file.annotations) for file in files)
        raise DatasetError(
            f"{root} has several JSON files of one kind ({names}); pass the folder of one of them"
        )
    return files[0], None


def _nothing(root: Path, listing: Listing, folders: Folders, paired: Sequence[Pair]) -> str:
    files = listing.files
    if is_polygon_file(root, files):
        return (
            f"{root} holds polygons of labelme, one JSON per image; export them first with its "
            "labelme2voc.py or labelme2coco.py, and pass the folder that this writes"
        )
    if shards := [file for file in files if file.lower().endswith(".tar")]:
        names = ", ".join(map(escape, shards[:SHOWN])) + ", ..." * (len(shards) > SHOWN)
        return (
            f"{root} holds tar files ({names}), which init does not read; for shards of WebDataset "
            "write a recipe with data: {format: webdataset, root: "
            f'{root}, train: "train-*.tar", val: 0.1, image: jpg, label: png}} (all keys: '
            "maskformer info RECIPE --keys, or docs/recipe.md)"
        )
    if rejected := rejected_labels(root, folders, paired):
        return f"{root} holds images and files named like labels, but none can be used: {rejected}"
    what = "images, but no label files for them" if folders else "no images"
    others = f" (skipped: {'; '.join(listing.skipped())})" if listing.skipped() else ""
    return (
        f"{root} holds {what}{others}; expected images with one label file each (same name, grey "
        "or palette PNG), or a JSON in COCO's panoptic or instances format with its images"
    )
