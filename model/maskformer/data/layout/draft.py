"""Drafting a recipe for the data in a folder, with comments for the user who completes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from maskformer.config.schema import COARSEST_STRIDE
from maskformer.data.layout.classes import LabelMeaning
from maskformer.data.layout.coco_layout import CocoFile
from maskformer.data.layout.folder_layout import FolderLayout
from maskformer.data.layout.pairs import Pair
from maskformer.data.layout.pixels import RGB, Pixels
from maskformer.data.layout.survey import Survey
from maskformer.system.documents import yaml_line
from maskformer.system.text import counted, escape

SMALL, LARGE = "_small", "_r50"
SIDES = {SMALL: 256, LARGE: 512}
"""Upper limit of the short side of images in training and evaluation."""
SCALES = {SMALL: (0.75, 1.0, 1.25, 1.5), LARGE: tuple(k / 10 for k in range(5, 21))}
VAL_SHARE = {True: 0.1, False: 0.34}
"""The fraction of images held out for validation, by whether there are `FEW` or more."""
FEW = 20


def draft(found: Survey, *, gpu: bool) -> str:
    """Return a recipe as YAML text.

    Args:
        found: the data.
        gpu: whether training will use a GPU, which decides the model and the size of its input.
    """
    base = LARGE if gpu else SMALL
    return "\n".join([*_head(found, base), *_data(found, base), *_eval(found)]) + "\n"


def _head(found: Survey, base: str) -> Iterator[str]:
    yield f"# Made by `maskformer init` from {escape(found.root)}. Check and correct it."
    yield "# `maskformer info THIS_FILE --keys` lists everything else that can be set."
    if found.note:
        yield f"# Note: {found.note}."
    yield f"base: {base}   # _small: untrained ResNet-18, for a CPU; _r50: ResNet-50, for a GPU."
    yield "# With --weights, use _r50, which uses the architecture of the weights."


def _data(found: Survey, base: str) -> Iterator[str]:
    layout = found.layout
    yield "data:"
    if isinstance(layout, FolderLayout):
        yield "  format: folder"
        yield f"  root: {yaml_line(str(found.root))}"
        yield from _folders(layout, found)
        if found.meaning is not None:
            yield from _labels(layout, found.meaning)
    else:
        train, val = layout
        yield f"  format: {train.kind}"
        yield f"  root: {yaml_line(str(found.root))}"
        yield from _coco(train, val)
    yield from _depth(found.pixels)
    yield from _sizes(found, base)


def _depth(pixels: Pixels) -> Iterator[str]:
    if pixels.channels != RGB:
        taken = "a list such as [4, 3, 2] selects some"
        yield f"  channels: {pixels.channels}   # bands of each image; {taken}"
    if pixels.limits is not None:
        low, high = pixels.limits
        yield f"  # The images hold values from {low:g} to {high:g}. This range becomes"
        yield "  # 0 to 255; or set percentiles: [2, 98] to stretch each image separately."
        yield f"  value_range: {pixels.value_range}"


def _folders(layout: FolderLayout, found: Survey) -> Iterator[str]:
    train_list, val_list = layout.lists or (None, None)
    train, val = layout.train, layout.val
    count = "" if train_list else f"   # {counted(found.images, 'image')}"
    yield f"  train: {_split(train, layout.objects[0], train_list)}{count}"
    if val is not None:
        yield f"  val: {_split(val, layout.objects[1], None)}   # {counted(val.count, 'image')}"
    elif val_list is not None:
        yield f"  val: {_split(train, layout.objects[0], val_list)}"
    else:
        yield f"  val: {_share(found.images)}   # this share of the images, held out of training"
    yield f"  image_suffix: {yaml_line(train.image_suffix)}"
    yield f"  label_suffix: {yaml_line(train.partner_suffix)}"


def _split(pair: Pair, objects: str | None, names: str | None) -> str:
    split = {"images": pair.images, "labels": pair.partners, "objects": objects, "list": names}
    return yaml_line({key: value for key, value in split.items() if value is not None})


def _labels(layout: FolderLayout, meaning: LabelMeaning) -> Iterator[str]:
    form, kind = ("#{:06x}", "Colours") if layout.colors else ("{}", "Values")
    shown = " ".join([*map(form.format, layout.values[:30]), *["..."] * (len(layout.values) > 30)])
    yield f"  # {kind} in {counted(layout.read, 'label file')}: {shown}"
    if meaning.label_map:
        yield "  label_map:   # value: class; null: no class. Replace the names by your own."
        yield from (
            f"    {yaml_line(value)}: {yaml_line(name)}" for value, name in meaning.label_map
        )
    else:
        yield f"  classes:   # {_origin(meaning)}"
        yield from (f"    - {yaml_line(name)}" for name in meaning.classes)
        yield f"  label_offset: {meaning.offset}   # class = value - label_offset"
    ignored = "values of pixels that belong to no class"
    yield f"  ignore: {yaml_line(list(meaning.ignore))}   # {ignored}"


def _origin(meaning: LabelMeaning) -> str:
    if meaning.source:
        return f"from {escape(Path(meaning.source).name)}"
    return "no list was found: use your own names; if one means unlabelled, ignore its value"


def _coco(train: CocoFile, val: CocoFile | None) -> Iterator[str]:
    yield f"  train: {_coco_split(train)}   # {counted(train.count, 'image')}"
    yield from _alike(train)
    if val is None:
        yield f"  val: {_share(train.count)}   # this share of the images, held out of training"
    else:
        yield f"  val: {_coco_split(val)}   # {counted(val.count, 'image')}"
        yield from _alike(val)
    if train.categories is not None:
        yield f"  categories: {yaml_line(train.categories)}"


def _alike(file: CocoFile) -> Iterator[str]:
    if file.alike:
        others = ", ".join(map(escape, file.alike))
        yield f"  # CHECK: {others} has files of the same names; which folder holds the images?"


def _coco_split(file: CocoFile) -> str:
    split = {"images": file.images, "panoptic": file.panoptic, "annotations": file.annotations}
    return yaml_line({key: value for key, value in split.items() if value})


def _share(images: int) -> float:
    return VAL_SHARE[images >= FEW]


def _sizes(found: Survey, base: str) -> Iterator[str]:
    height, width = found.pixels.size
    side = min(height, width, SIDES[base])
    crop = max(side // COARSEST_STRIDE, 2) * COARSEST_STRIDE
    sides = [round(side * scale) for scale in SCALES[base]]
    yield f"  # The typical image has {width}x{height} pixels."
    yield f"  augmentation: {{kind: semantic, short_sides: {sides}, crop: [{crop}, {crop}]}}"
    yield f"  test_short_side: {side}"
    yield f"  test_max_side: {4 * side}"


def _eval(found: Survey) -> Iterator[str]:
    layout = found.layout
    objects = layout.objects[0] is not None if isinstance(layout, FolderLayout) else True
    if objects:
        yield "eval:"
        yield "  panoptic: true   # PQ: objects are distinguished"
    # This format alone needs pycocotools anyway.
    if not isinstance(layout, FolderLayout) and layout[0].kind == "coco_instances":
        yield "  instances: true   # mask AP of the objects"
