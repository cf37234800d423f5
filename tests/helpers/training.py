"""Training runs of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskformer.config.schema import Config
from maskformer.training.build import build_training
from maskformer.training.log_window import LogWindow
from maskformer.training.trainer import Trainer


def build_trainer(config: Config, output: Path, **options: Any) -> Trainer:
    """A trainer of a recipe in a run folder; see `build_training` for the options."""
    return Trainer(build_training(config, output, **options))


def record_steps(trainer: Trainer) -> list[dict[str, float]]:
    """Trains, and returns the figures that are logged."""
    log, seen = trainer.parts.reporter.log, []

    def record(step: int, values: dict[str, float], window: LogWindow) -> None:
        seen.append(values)
        log(step, values, window)

    trainer.parts.reporter.log = record  # type: ignore[method-assign]
    trainer.fit()
    return seen


def scalars(run: Path, name: str) -> dict[int, float]:
    """The curve that TensorBoard shows: a resumed run adds a file, whose steps count."""
    values: dict[int, float] = {}
    files = sorted((run / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for file in files:  # TensorBoard's own order mixes up files of the same second
        events = EventAccumulator(str(file))
        events.Reload()
        values |= {event.step: event.value for event in events.Scalars(name)}
    return values
