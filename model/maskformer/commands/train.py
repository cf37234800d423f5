"""`maskformer train`."""

from __future__ import annotations

from pathlib import Path

from maskformer.config.choices import Backend
from maskformer.config.load import load_config
from maskformer.config.schema import Config
from maskformer.modeling.backbone import check_pretrained
from maskformer.output.console import Progress, metrics_table, written
from maskformer.training.build import build_training
from maskformer.training.run_checkpoint import (
    checkpoint_to_resume,
    load_recipe,
    resolve_checkpoint,
)
from maskformer.training.trainer import Trainer
from maskformer.weights import open_checkpoint


def run(
    recipe: Config | None,
    config: str | None,
    overrides: list[str],
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    weights: Path | None,
    backend: Backend,
    cpu: bool,
) -> None:
    """Trains in the run folder `output`; without a recipe, with the one of the run to resume or of
    the weights. A recipe without a `model` section takes the architecture of the weights.
    """
    if resume and recipe is None:
        recipe = load_recipe(checkpoint_to_resume(output), overrides)
    elif weights is not None and not resume:
        weights = resolve_checkpoint(weights)
        recipe = _tuning_recipe(config, overrides, weights)
    assert recipe is not None
    if weights is None and not resume:
        check_pretrained(recipe.model.backbone)
    parts = build_training(
        recipe,
        output,
        resume=resume,
        overwrite=overwrite,
        weights=weights,
        backend=backend,
        cpu=cpu,
    )
    trainer = Trainer(parts)
    metrics = trainer.fit()
    progress = Progress(enabled=parts.accelerator.is_main_process)
    progress.print(metrics_table(metrics, f"{output} after {trainer.step} steps"))
    progress.print(written(output))


def _tuning_recipe(config: str | None, overrides: list[str], weights: Path) -> Config:
    if config is None:
        return load_recipe(weights, overrides)
    return load_config(config, overrides, model=open_checkpoint(weights).config)
