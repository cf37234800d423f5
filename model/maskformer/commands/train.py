"""`maskformer train`."""

from __future__ import annotations

from pathlib import Path

from maskformer.config.choices import Backend
from maskformer.config.load import load_config
from maskformer.config.schema import Config
from maskformer.modeling.backbone import check_pretrained
from maskformer.output.console import Progress, metrics_table, written
from maskformer.system.text import counted
from maskformer.training.build import build_training
from maskformer.training.checkpoints.contents import load_recipe, resolve_checkpoint
from maskformer.training.checkpoints.resuming import checkpoint_to_resume
from maskformer.training.trainer import Trainer
from maskformer.weights import open_checkpoint


def run(
    recipe: Config | None,
    overrides: list[str],
    output: Path,
    *,
    config: str | None = None,
    resume: bool,
    overwrite: bool,
    weights: Path | None,
    backend: Backend,
    cpu: bool,
) -> None:
    """Trains in the run folder `output`.

    Args:
        recipe: the one named by `config`; without one, that of the run to resume or of the weights.
        config: read again where the weights may bring the architecture.
    """
    if weights is not None:
        weights = resolve_checkpoint(weights)
    if recipe is None:
        source = weights if weights is not None and not resume else checkpoint_to_resume(output)
        recipe = load_recipe(source, overrides)
    elif config is not None and weights is not None and not resume:
        recipe = load_config(config, overrides, model=open_checkpoint(weights).config)
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
    progress.print(metrics_table(metrics, f"{output} after {counted(trainer.step, 'step')}"))
    progress.print(written(output))
