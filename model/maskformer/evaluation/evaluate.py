"""Evaluation of a model on a data set: metrics, throughput and pictures of predictions."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from maskformer.config.schema import Config, EvalConfig
from maskformer.data import Dataset, DatasetInfo, EvalLoader, Sample
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
from maskformer.system.process_group import gather_in_order


@dataclass
class Evaluation:
    """The results of an evaluation."""

    metrics: dict[str, float]
    per_class: dict[str, list[float]]
    """Metrics of each class; NaN if the class never occurs."""
    score: float
    """The value of `default_metric`; `Evaluator` replaces it by that of `train.best_metric`."""
    pictures: dict[str, Tensor] = field(default_factory=dict)
    """Image, ground truth and prediction side by side, uint8 `[3, H, W]`, by the image's name in
    `OutputNames`.
    """
    confusion: Tensor | None = None
    """Number of pixels by true and predicted class, int64 `[K + 1, K + 1]`; index K is void. None
    if no label maps were evaluated.
    """


def eval_loader(
    dataset: Dataset,
    config: Config,
    *,
    rank: int = 0,
    world_size: int = 1,
    warn: Callable[[str], None] = warnings.warn,
) -> EvalLoader:
    """Make the loader for the evaluation of a recipe; see `EvalLoader`."""
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
    """Evaluate a model. Each process evaluates its share of the images; metrics are over all.

    Args:
        model: the model on `device`.
        loader: the images of this process.
        info: the classes.
        config: the metrics to compute.
        device: the device.
        progress: shows the progress.
        tta: average the class scores over these views; panoptic segments and instances are
            predicted without augmentation.
        on_prediction: called with the sample and the prediction of each image.
        between_batches: called after each batch; may raise an error to stop the evaluation.

    Raises:
        ConfigError: `tta` is given without `config.semantic`.
        DatasetError: an image or annotation cannot be used.
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
                torch.cuda.synchronize(device)  # otherwise, only kernel launches would be timed
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
    parts = gather_in_order([(images, seconds)])
    slowest = max(seconds for _, seconds in parts)
    metrics["eval_images_per_second"] = sum(images for images, _ in parts) / max(slowest, 1e-9)
    metrics["peak_memory_mb"] = peak_memory(device) / 1e6
    names = OutputNames()
    drawn = {
        names.take(name): picture for name, picture in gather_in_order(pictures, config.batch_size)
    }
    return Evaluation(metrics, per_class, score, drawn, confusion)


def check_averaging(tta: bool, config: EvalConfig) -> None:
    """Check that test-time augmentation is used only with semantic evaluation.

    Raises:
        ConfigError: `tta` is True and `eval.semantic` is off.
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


def write_pictures(evaluation: Evaluation, folder: Path) -> list[str]:
    """Write one PNG per picture, named after the image.

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
