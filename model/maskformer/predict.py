"""Segments images that have no ground truth, and writes what people and programs want to read."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from maskformer.config import Config
from maskformer.data import DatasetError, DatasetInfo, EvalBatch, EvalTransform, Normalize
from maskformer.data.images import id_to_rgb, read_image
from maskformer.data.sample import Sample
from maskformer.evaluation import Prediction, predict_batch
from maskformer.output import check_output_folder
from maskformer.progress import Progress
from maskformer.visualize import overlay_with_legend, save_picture

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Image files named by files, folders (all images below them) and glob patterns, in order.

    Raises:
        DatasetError: a pattern that stands for nothing.
    """
    files: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(
                f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()
            )
        elif path.is_file():
            found = [path]
        else:
            names = glob.glob(pattern, recursive=True)  # noqa: PTH207 (absolute patterns too)
            found = sorted(f for f in map(Path, names) if f.is_file())
        if not found:
            raise DatasetError(f"no image at '{pattern}': expected a file, a folder or a pattern")
        files.extend(found)
    return list(dict.fromkeys(files))


def predict_images(
    model: nn.Module,
    files: Sequence[Path],
    config: Config,
    info: DatasetInfo,
    out: Path,
    *,
    panoptic: bool,
    progress: Progress,
) -> int:
    """Writes, for each image, `NAME.png` (overlay and legend) and a map of the original size.

    Semantic: `NAME_classes.png`, class numbers in grey (16 bit beyond 256 classes). Panoptic:
    `NAME_segments.png`, ids as R + 256 G + 65536 B, and `NAME_segments.json`. An image that cannot
    be read is reported and left out.

    Returns:
        The number of images left out.

    Raises:
        OSError: `out` cannot be written.
        ValueError: a picture would take the place of one of the images.
    """
    check_output_folder(out)
    names = _output_names(files)
    inputs = {file.resolve() for file in files}
    for name in names:
        if (out / f"{name}.png").resolve() in inputs:
            raise ValueError(
                f"{out / name}.png is one of the images and would be overwritten: choose another "
                "--out"
            )
    out.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    transform = EvalTransform(config.data.test_short_side, config.data.test_max_side)
    normalize = Normalize.from_config(config.model)
    what = config.eval.model_copy(update={"semantic": not panoptic, "panoptic": panoptic})
    failures = 0
    model.eval()
    with progress.counting("predicting", len(files)) as counter:
        for file, name in zip(files, names, strict=True):
            try:
                batch = _load(file, transform, normalize)
            except DatasetError as error:
                progress.warn(str(error))
                failures += 1
            else:
                [prediction] = predict_batch(model, batch, info, what, device)
                _write(out / name, batch.samples[0], prediction, info)
            counter.advance(1)
    return failures


def _load(file: Path, transform: EvalTransform, normalize: Normalize) -> EvalBatch:
    image = read_image(file)
    resized = transform(image)
    nothing = torch.zeros(0)
    sample = Sample(
        image=image,
        segments=torch.full(image.shape[-2:], -1, dtype=torch.int32),
        labels=nothing.long(),
        crowd=nothing.bool(),
        name=file.name,
    )
    return EvalBatch(
        pixel_values=normalize([resized]),
        image_sizes=((resized.shape[-2], resized.shape[-1]),),
        original_sizes=(sample.size,),
        samples=(sample,),
    )


def _output_names(files: Sequence[Path]) -> list[str]:
    """File stems, numbered where several images share one."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        name, number = file.stem, 1
        while name in taken:
            number += 1
            name = f"{file.stem}_{number}"
        taken.add(name)
        names.append(name)
    return names


def _write(stem: Path, sample: Sample, prediction: Prediction, info: DatasetInfo) -> None:
    picture = overlay_with_legend(sample.image, prediction.segmentation(), info)
    save_picture(picture, Path(f"{stem}.png"))
    if prediction.classes is not None:
        dtype = np.uint8 if info.num_classes <= 256 else np.uint16
        classes = prediction.classes.cpu().numpy().astype(dtype)
        Image.fromarray(classes).save(f"{stem}_classes.png")
    if prediction.panoptic is not None:
        ids, segments = prediction.panoptic
        Image.fromarray(id_to_rgb(ids.cpu().numpy())).save(f"{stem}_segments.png")
        entries = [
            {
                **segment,
                "class": info.classes[segment["category_id"]],
                "category_id": info.category_ids[segment["category_id"]],
            }
            for segment in segments
        ]
        Path(f"{stem}_segments.json").write_text(json.dumps(entries, indent=1) + "\n")
