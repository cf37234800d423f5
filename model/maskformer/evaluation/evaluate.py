"""Scores a model on a data set: mIoU, PQ, throughput, and pictures to look at."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mfkernels
from maskformer.config.schema import Config, EvalConfig
from maskformer.data import (
    Dataset,
    DatasetInfo,
    EvalBatch,
    EvalLoader,
    EvalTransform,
    Normalize,
    Sample,
)
from maskformer.data.sample import naming
from maskformer.errors import ConfigError
from maskformer.evaluation.panoptic_quality import PanopticQuality
from maskformer.evaluation.semantic_quality import SemanticQuality
from maskformer.inference.maps import Size, instances, panoptic_maps, semantic_maps
from maskformer.inference.test_time_augmentation import Views, semantic_map_of_views
from maskformer.modeling.maskformer import SegmentationModel
from maskformer.output.console import Progress, peak_memory
from maskformer.output.pictures import Segmentation, save_picture, side_by_side
from maskformer.system.paths import OutputNames


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
        EvalTransform(config.data.test_short_side, config.data.test_max_side),
        batch_size=config.eval.batch_size,
        rank=rank,
        world_size=world_size,
        workers=config.train.workers,
        normalize=Normalize.from_config(config.model),
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
    tta: Views | None = None,
    each: Callable[[Sample, Prediction], None] | None = None,
    between_batches: Callable[[], None] | None = None,
) -> Evaluation:
    """Runs the model over the loader; every process sees its share, the figures cover all.

    Args:
        model: on `device`.
        tta: average the class scores over these views; segments come from the plain image.
        each: called with every image's sample and prediction.
        between_batches: called after each batch; may raise to end the evaluation.

    Raises:
        ConfigError: `tta` without `config.semantic`.
        DatasetError: an image or annotation that cannot be used.
    """
    if tta is not None and not config.semantic:
        raise ConfigError("test-time augmentation averages class scores, but eval.semantic is off")
    was_training = model.training
    model.eval()
    semantic = SemanticQuality(info.num_classes).to(device) if config.semantic else None
    panoptic = (
        PanopticQuality(info.num_classes, info.things).to(device) if config.panoptic else None
    )
    pictures: dict[str, Tensor] = {}
    names = OutputNames()
    images, seconds = 0, 0.0
    with progress.counting("evaluating", loader.num_images) as counter:
        for batch in loader:
            start = time.perf_counter()
            predictions = predict_batch(model, batch, info, config, device, tta=tta)
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # or only the launches would be timed
            seconds += time.perf_counter() - start
            for sample, prediction in zip(batch.samples, predictions, strict=True):
                if semantic is not None and prediction.classes is not None:
                    semantic.update(prediction.classes, sample.semantic_map().to(device))
                if panoptic is not None and prediction.panoptic is not None:
                    panoptic.update(prediction.panoptic, sample)
                if each is not None:
                    each(sample, prediction)
                if len(pictures) < config.pictures:
                    pictures[names.take(sample.name)] = side_by_side(
                        sample.image,
                        Segmentation.from_sample(sample),
                        prediction.segmentation(),
                        info,
                    )
            images += len(batch.samples)
            counter.advance(len(batch.samples))
            if between_batches is not None:
                between_batches()
    model.train(was_training)
    return _summarise(semantic, panoptic, pictures, images / max(seconds, 1e-9), device)


@dataclass
class Prediction:
    """One image's result; a part that was not asked for is None."""

    classes: Tensor | None = None
    """`[H, W]` int64."""
    panoptic: tuple[Tensor, list[dict[str, Any]]] | None = None
    """`[H, W]` int32 segment ids and what each segment is."""
    instances: mfkernels.Instances | None = None

    def segmentation(self, min_score: float = 0.0) -> Segmentation:
        """What a picture shows: segments if there are any, else instances, else classes.

        Args:
            min_score: instances below it are left out.

        Raises:
            ValueError: nothing was asked for.
        """
        if self.panoptic is not None:
            return Segmentation.from_panoptic(*self.panoptic)
        if self.instances is not None:
            found = self.instances
            return Segmentation.from_instances(found.masks, found.labels, found.scores, min_score)
        if self.classes is not None:
            return Segmentation.from_semantic(self.classes)
        raise ValueError("nothing to show: the prediction is empty")


@torch.inference_mode()
def predict_batch(
    model: SegmentationModel,
    batch: EvalBatch,
    info: DatasetInfo,
    config: EvalConfig,
    device: torch.device,
    *,
    tta: Views | None = None,
    with_instances: bool = False,
) -> list[Prediction]:
    """Label maps, segments and instances of a batch, in the original sizes.

    Images run together only if each would be padded to the same size alone: padding reaches the
    convolutions and the attention, so that results would otherwise depend on the company.

    Args:
        model: on `device`, in evaluation mode.
        config: `semantic` and `panoptic` say what is wanted.
        tta: average the class scores over these views.
        with_instances: also give instances of the thing classes.
    """
    predictions = [Prediction() for _ in batch.samples]
    if config.panoptic or with_instances or tta is None:
        pixel_values = batch.pixel_values.to(device, non_blocking=True)
        for (height, width), indices in _same_input(batch).items():
            outputs = model(pixel_values[indices, :, :height, :width].contiguous())
            where: dict[str, Any] = {
                "input_size": (height, width),
                "image_sizes": [batch.image_sizes[index] for index in indices],
                "sizes": [batch.original_sizes[index] for index in indices],
            }
            group = [predictions[index] for index in indices]
            if config.semantic and tta is None:
                maps = semantic_maps(outputs, **where, resize_logits=config.resize_logits)
                for prediction, classes in zip(group, maps, strict=True):
                    prediction.classes = classes
            where["thing_classes"] = sorted(info.things)
            if config.panoptic:
                found = panoptic_maps(outputs, **where, config=config)
                for prediction, segments in zip(group, found, strict=True):
                    prediction.panoptic = segments
            if with_instances:
                for prediction, objects in zip(group, instances(outputs, **where), strict=True):
                    prediction.instances = objects
    if config.semantic and tta is not None:
        for sample, prediction in zip(batch.samples, predictions, strict=True):
            with naming(sample.name):
                prediction.classes = semantic_map_of_views(
                    model, sample.image, tta, device, resize_logits=config.resize_logits
                )
    return predictions


def _same_input(batch: EvalBatch) -> dict[Size, list[int]]:
    """The images of each input size."""
    together: dict[Size, list[int]] = {}
    for index, size in enumerate(batch.input_sizes):
        together.setdefault(size, []).append(index)
    return together


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


def _summarise(
    semantic: SemanticQuality | None,
    panoptic: PanopticQuality | None,
    pictures: dict[str, Tensor],
    images_per_second: float,
    device: torch.device,
) -> Evaluation:
    metrics: dict[str, float] = {}
    per_class: dict[str, list[float]] = {}
    for quality in (semantic, panoptic):
        if quality is None:
            continue
        for name, value in quality.compute().items():
            if value.ndim:
                per_class[name.removesuffix("_per_class")] = value.tolist()
            else:
                metrics[name] = value.item()
    score = metrics["miou" if semantic is not None else "pq"]
    score = score if math.isfinite(score) else -math.inf  # nothing was labelled
    metrics["eval_images_per_second"] = images_per_second
    metrics["peak_memory_mb"] = peak_memory(device) / 1e6
    return Evaluation(metrics, per_class, score, pictures)
