"""Checkpoints from one format into another."""

from __future__ import annotations

from pathlib import Path

from maskformer.base import SegmentationModel
from maskformer.checkpoint import DATASET, load_info
from maskformer.choices import Format
from maskformer.image_processor import ImageProcessor
from maskformer.weights.checkpoint import find


def convert(source: str | Path, target: str | Path, format: Format) -> SegmentationModel:  # noqa: A002
    """Writes a checkpoint in another format, with class names and pre-processing where it can.

    Args:
        source: whatever `MaskFormer.from_pretrained` reads.
        target: a folder; for `"official"` also a `.pkl` file.
        format: see `MaskFormer.save_pretrained`.

    Returns:
        The model.

    Raises:
        FileNotFoundError, HubError, ValueError: as in `from_pretrained` and `save_pretrained`.
        OSError: the target cannot be written.
    """
    found = find(source)
    model = SegmentationModel.from_pretrained(found)
    if model.class_names is None and (found / DATASET).is_file():
        model.class_names = load_info(found).classes
    processor = ImageProcessor.from_pretrained(found)
    model.save_pretrained(target, format)
    if format != "official":
        processor.save_pretrained(target)
    return model
