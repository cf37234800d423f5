"""Trains recipes and reads what they log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskformer.config.schema import Config
from maskformer.training.build import build_training
from maskformer.training.log_window import LogWindow
from maskformer.training.trainer import Trainer


def build_trainer(config: Config, output: Path, **options: Any) -> Trainer:
    """A trainer for a recipe, writing to a run folder; see `build_training` for the options."""
    return Trainer(build_training(config, output, **options))


def record_steps(trainer: Trainer) -> list[dict[str, float]]:
    """Train, and return the values logged at each step."""
    log, seen = trainer.parts.reporter.log, []

    def record(step: int, values: dict[str, float], window: LogWindow) -> None:
        seen.append(values)
        log(step, values, window)

    trainer.parts.reporter.log = record  # type: ignore[method-assign]
    trainer.fit()
    return seen


def scalars(run: Path, name: str) -> dict[int, float]:
    """The curve that TensorBoard shows, by step. A resumed run adds a file, whose values replace
    earlier ones of the same steps.
    """
    values: dict[int, float] = {}
    files = sorted((run / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for file in files:  # TensorBoard's order is ambiguous for files of the same second
        events = EventAccumulator(str(file))
        events.Reload()
        values |= {event.step: event.value for event in events.Scalars(name)}
    return values
