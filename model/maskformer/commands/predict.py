"""`maskformer predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

import mfkernels
from maskformer.commands.device import choose_device
from maskformer.config.choices import Backend, Mode
from maskformer.errors import DatasetError
from maskformer.modeling.maskformer import MaskFormer
from maskformer.output.console import Progress
from maskformer.output.protected_inputs import check_output_beside_model
from maskformer.predict import find_images, predict_images
from maskformer.training.checkpoints.contents import (
    load_info,
    load_prediction_recipe,
    resolve_checkpoint,
)


def run(
    images: list[str],
    checkpoint: Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    mode: Mode | None,
    tta: bool,
    backend: Backend,
    device: str | None,
) -> None:
    """Predicts; the recipe decides the mode unless given, as far as it can: views and tiles are
    semantic.
    """
    folder = resolve_checkpoint(checkpoint)
    progress = Progress()
    files = find_images(images, out, progress.print)
    check_output_beside_model(out, folder)
    model = MaskFormer.from_pretrained(folder).to(choose_device(device))
    recipe = load_prediction_recipe(folder, model, list(overrides))
    averaged = tta or recipe.predict.tile is not None
    with mfkernels.use_backend(backend):
        failures = predict_images(
            model,
            files,
            recipe,
            load_info(folder, model),
            out,
            mode=mode or ("panoptic" if recipe.eval.panoptic and not averaged else "semantic"),
            tta=tta,
            progress=progress,
        )
    if failures == len(files):
        raise DatasetError(f"none of {len(files)} images could be read")
    count = len(files) - failures
    progress.print(
        f"{count} image{'s' * (count != 1)} predicted; the results are in {out}, and files.json "
        "there says which belongs to which image."
    )
    if failures:
        raise typer.Exit(1)
