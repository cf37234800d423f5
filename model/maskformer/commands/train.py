"""`maskformer train`."""

from __future__ import annotations

from pathlib import Path

from maskformer.config.choices import Backend
from maskformer.config.load import load_config
from maskformer.config.schema import Config
from maskformer.modeling.backbone import check_pretrained
from maskformer.output.console import Progress, metrics_table, written
from maskformer.system.allocator import keep_freed_memory
from maskformer.system.text import counted
from maskformer.training.build import build_training
from maskformer.training.checkpoints.contents import load_recipe, resolve_checkpoint
from maskformer.training.checkpoints.resuming import checkpoint_to_resume
from maskformer.training.trainer import Trainer
from maskformer.weights.open import read_model_config


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
    """Train in the run folder `output`.

    Args:
        recipe: the recipe read from `config`. If None, the recipe of the run to resume, or of the
            run that the weights come from, is used.
        overrides: `key=value` pairs.
        output: the run folder.
        config: the name or file of the recipe. It is read again if the architecture may come from
            the run to resume or from the weights.
        resume, overwrite, backend, cpu: see `build_training`.
        weights: a checkpoint to start from; ignored if a run is resumed.
    """
    if resume:
        source: Path | None = checkpoint_to_resume(output)
    else:
        source = weights = resolve_checkpoint(weights) if weights is not None else None
    if source is None:
        assert recipe is not None
        check_pretrained(recipe.model.backbone)
    elif recipe is None:
        recipe = load_recipe(source, overrides)
    elif config is not None:
        recipe = load_config(config, overrides, model=read_model_config(source))
    parts = build_training(
        recipe,
        output,
        resume=resume,
        overwrite=overwrite,
        weights=weights,
        backend=backend,
        cpu=cpu,
    )
    keep_freed_memory(parts.accelerator.device)
    trainer = Trainer(parts)
    metrics = trainer.fit()
    progress = Progress(enabled=parts.accelerator.is_main_process)
    progress.print(metrics_table(metrics, f"{output} after {counted(trainer.step, 'step')}"))
    progress.print(written(output))
