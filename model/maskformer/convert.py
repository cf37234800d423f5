"""Conversion of checkpoints from one format to another."""

from __future__ import annotations

import os
from pathlib import Path

from maskformer.config.choices import Format
from maskformer.errors import OutputError
from maskformer.inference.image_processor import ImageProcessor
from maskformer.modeling.base import SegmentationModel
from maskformer.output.protected_inputs import check_output_beside_model
from maskformer.system.paths import given_path
from maskformer.system.text import escape
from maskformer.system.writing import write_text
from maskformer.training.checkpoints.contents import DATASET, load_info
from maskformer.training.checkpoints.writing import info_to_json
from maskformer.training.run_folder import is_run
from maskformer.weights.files import CONFIG_FILE, WEIGHTS_FILE
from maskformer.weights.locate import STATE
from maskformer.weights.official import DEFAULT_FILE
from maskformer.weights.open import find
from maskformer.weights.preprocessor import PREPROCESSOR_FILE


def convert(
    source: str | Path,
    target: str | Path,
    format: Format,  # noqa: A002
    *,
    overwrite: bool = False,
) -> SegmentationModel:
    """Write a checkpoint in another format, with class names and pre-processing if possible. The
    native format also keeps which classes of a run are things, their colours and category ids.

    Args:
        source: any checkpoint that `MaskFormer.from_pretrained` reads.
        target: a folder; for `"official"`, it may also be a `.pkl` file.
        format: see `MaskFormer.save_pretrained`.
        overwrite: replace an existing model at the target.

    Returns:
        The model.

    Raises:
        FileNotFoundError, HubError, ValueError: as in `from_pretrained` and `save_pretrained`.
        ValueError: the target would overwrite the source, or is a run.
        FileExistsError: the target already holds a file that would be written.
        OSError: the target cannot be written.
    """
    target = given_path("target", target)
    local = given_path("source", source)
    _check_target(find(local) if local.exists() else local, target, format)
    if not overwrite:
        _check_free(target, format)
    found = find(source)  # may fetch it
    model = SegmentationModel.from_pretrained(found)
    if model.class_names is None and (found / DATASET).is_file():
        model.class_names = load_info(found).classes
    processor = ImageProcessor.from_pretrained(found)
    model.save_pretrained(target, format)
    if format != "official":
        processor.save_pretrained(target)
    if format == "native":
        _write_info(found, target)
    return model


def _write_info(source: Path, target: Path) -> None:
    """Copy what a run knows about its classes, or remove what a replaced model knew."""
    if (source / DATASET).is_file():
        write_text(target / DATASET, info_to_json(load_info(source)))
    else:
        (target / DATASET).unlink(missing_ok=True)


def _check_free(target: Path, format: Format) -> None:  # noqa: A002
    if format == "official":
        files = [target if target.suffix == ".pkl" else target / DEFAULT_FILE]
    else:
        names = (CONFIG_FILE, WEIGHTS_FILE, PREPROCESSOR_FILE)
        files = [target / name for name in (*names, *[DATASET] * (format == "native"))]
    taken = next((file for file in files if os.path.lexists(file)), None)
    if taken is not None:
        raise FileExistsError(
            f"{escape(taken)} already exists: choose another target, or replace it with --overwrite"
        )


def _check_target(source: Path, target: Path, format: Format) -> None:  # noqa: A002
    """Check that the target is neither the source nor a training run."""
    if source.is_dir():
        check_output_beside_model(target, source)
    file = target if target.suffix == ".pkl" else target / DEFAULT_FILE
    if format == "official" and file.exists() and source.exists() and file.samefile(source):
        raise OutputError(f"{target} is the source checkpoint: choose another target")
    folder = file.parent if format == "official" else target
    if is_run(folder) or (folder / STATE).exists():
        raise OutputError(f"{folder} is a training run: choose another target")
