"""Scores a model on a data set: mIoU, PQ, throughput, and pictures to look at."""

from __future__ import annotations

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskformer.config.schema import Config, EvalConfig
from maskformer.data import (
    Dataset,
    DatasetInfo,
    EvalLoader,
    Sample,
)
from maskformer.errors import ConfigError
from maskformer.evaluation.measures import Measures, default_metric, finite_score
from maskformer.inference.image_processor import ImageProcessor
from maskformer.inference.prediction import Prediction, predict_batch
from maskformer.inference.segmentation import Segmentation
from maskformer.inference.test_time_augmentation import AugmentedViews
from maskformer.modeling.base import SegmentationModel
from maskformer.output.console import Progress, peak_memory
from maskformer.output.pictures import save_picture, side_by_side
from maskformer.system.paths import OutputNames
from maskformer.system.process_group import gather_in_turn


@dataclass
class Evaluation:
    """What an evaluation found."""

    metrics: dict[str, float]
    per_class: dict[str, list[float]]
    """Figures by class; NaN where a class never occurs."""
    score: float
    """What "best" means: mIoU, or PQ where only panoptic quality is measured."""
    pictures: dict[str, Tensor] = field(default_factory=dict)
    """uint8 `[3, H, W]` by the image's name as `OutputNames` makes it: image, ground truth,
    prediction.
    """
    confusion: Tensor | None = None
    """int64 `[K + 1, K + 1]`: pixels by true and predicted class, the last void; of label maps."""


def eval_loader(
    dataset: Dataset,
    config: Config,
    *,
    rank: int = 0,
    world_size: int = 1,
    warn: Callable[[str], None] = warnings.warn,
) -> EvalLoader:
    """The images of a data set as the recipe's evaluation sees them; see `EvalLoader`."""
    return EvalLoader(
        dataset,
        ImageProcessor.from_config(config).batch,
        batch_size=config.eval.batch_size,
        rank=rank,
        world_size=world_size,
        workers=config.train.workers,
        warn=warn,
    )


@torch.inference_mode()
def evaluate(
    model: SegmentationModel,
    loader: EvalLoader,
    info: DatasetInfo,
    config: EvalConfig,
    device: torch.device,
    progress: Progress,
    *,
    tta: AugmentedViews | None = None,
    on_prediction: Callable[[Sample, Prediction], None] | None = None,
    between_batches: Callable[[], None] | None = None,
) -> Evaluation:
    """Runs the model over the loader; every process sees its share, the figures cover all.

    Args:
        model: on `device`.
        tta: average the class scores over these views; segments come from the plain image.
        on_prediction: called with every image's sample and prediction.
        between_batches: called after each batch; may raise to end the evaluation.

    Raises:
        ConfigError: `tta` without `config.semantic`.
        DatasetError: an image or annotation that cannot be used.
    """
    check_averaging(tta is not None, config)
    measures = Measures(info, config, device)
    pictures: list[tuple[str, Tensor]] = []
    wanted = sum(index < config.pictures for index in loader.indices)
    images, seconds = 0, 0.0
    counting = progress.counting("evaluating", loader.num_images)
    with _in_evaluation_mode(model), counting as counter:
        for batch in loader:
            start = time.perf_counter()
            predictions = predict_batch(
                model, batch, info, config, device, tta=tta, with_instances=config.instances
            )
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # or only the launches would be timed
            seconds += time.perf_counter() - start
            for sample, prediction in zip(batch.samples, predictions, strict=True):
                measures.update(prediction, sample)
                if on_prediction is not None:
                    on_prediction(sample, prediction)
                if len(pictures) < wanted:
                    pictures.append((sample.name, _picture(sample, prediction, config, info)))
            images += len(batch.samples)
            counter.advance(len(batch.samples))
            if between_batches is not None:
                between_batches()
    metrics, per_class, confusion = measures.compute()
    score = finite_score(metrics[default_metric(config)])
    parts = gather_in_turn([(images, seconds)])
    slowest = max(seconds for _, seconds in parts)
    metrics["eval_images_per_second"] = sum(images for images, _ in parts) / max(slowest, 1e-9)
    metrics["peak_memory_mb"] = peak_memory(device) / 1e6
    names = OutputNames()
    drawn = {
        names.take(name): picture for name, picture in gather_in_turn(pictures, config.batch_size)
    }
    return Evaluation(metrics, per_class, score, drawn, confusion)


def check_averaging(tta: bool, config: EvalConfig) -> None:
    """Refuses test-time augmentation where there is nothing that it averages.

    Raises:
        ConfigError: so it is.
    """
    if tta and not config.semantic:
        raise ConfigError("test-time augmentation averages class scores, but eval.semantic is off")


@contextlib.contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _picture(
    sample: Sample, prediction: Prediction, config: EvalConfig, info: DatasetInfo
) -> Tensor:
    found = prediction.segmentation(config.object_mask_threshold)
    return side_by_side(sample.image, Segmentation.from_sample(sample), found, info)


def metrics_to_json(values: Mapping[str, Any]) -> str:
    """Figures as strict JSON: what could not be measured is null."""

    def strict(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: strict(part) for name, part in value.items()}
        if isinstance(value, list):
            return [strict(part) for part in value]
        return value if math.isfinite(value) else None

    return json.dumps(strict(values), indent=1, allow_nan=False) + "\n"


def write_pictures(evaluation: Evaluation, folder: Path) -> list[str]:
    """One PNG per picture, named after the image.

    Returns:
        The names of the files.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = OutputNames()
    written = []
    for name, picture in evaluation.pictures.items():
        written.append(f"{names.take(name.replace('/', '_'))}.png")
        save_picture(picture, folder / written[-1])
    return written
