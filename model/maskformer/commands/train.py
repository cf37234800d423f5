"""`maskformer train`."""

from __future__ import annotations

from pathlib import Path

from maskformer.config.choices import Backend
from maskformer.config.schema import Config
from maskformer.output.console import Progress, metrics_table
from maskformer.training.build import build_training
from maskformer.training.run_checkpoint import checkpoint_to_resume, load_recipe
from maskformer.training.trainer import Trainer


def run(
    recipe: Config | None,
    overrides: list[str],
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    weights: Path | None,
    backend: Backend,
    cpu: bool,
) -> None:
    """Trains in the run folder `output`; without a recipe, with the one of the run to resume."""
    parts = build_training(
        recipe or load_recipe(checkpoint_to_resume(output), overrides),
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
    progress.print(f"figures: {output / 'metrics.json'}   pictures: {output / 'predictions'}")
