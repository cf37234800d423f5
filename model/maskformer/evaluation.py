"""Scores a model on a data set: mIoU, PQ, throughput, and pictures to look at."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.io import write_png

from maskformer.config import EvalConfig
from maskformer.data import DatasetInfo, EvalBatch, EvalLoader, Sample
from maskformer.inference import panoptic_maps, semantic_maps
from maskformer.metrics import PanopticQuality, SemanticScores
from maskformer.progress import Progress, peak_memory
from maskformer.visualize import panoptic_overlay, semantic_overlay, side_by_side


@dataclass
class Evaluation:
    """What an evaluation found."""

    metrics: dict[str, float]
    per_class: dict[str, list[float]]
    """Figures by class; NaN where a class never occurs."""
    score: float
    """What "best" means: mIoU, or PQ where only panoptic quality is measured."""
    pictures: dict[str, Tensor] = field(default_factory=dict)
    """uint8 `[3, H, W]` by image name: image, ground truth, prediction."""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: EvalLoader,
    info: DatasetInfo,
    config: EvalConfig,
    device: torch.device,
    progress: Progress,
) -> Evaluation:
    """Runs the model over the loader; every process sees its share, the figures cover all.

    Raises:
        DatasetError: an image or annotation that cannot be used.
    """
    was_training = model.training
    model.eval()
    semantic = SemanticScores(len(info.classes)).to(device) if config.semantic else None
    panoptic = PanopticQuality(info).to(device) if config.panoptic else None
    pictures: dict[str, Tensor] = {}
    images, seconds = 0, 0.0
    with progress.counting("evaluating", loader.num_images) as counter:
        for batch in loader:
            start = time.perf_counter()
            predictions = _predict(model, batch, info, config, device)
            seconds += time.perf_counter() - start
            for sample, prediction in zip(batch.samples, predictions, strict=True):
                if semantic is not None:
                    semantic.update(prediction.classes, sample.semantic_map().to(device))
                if panoptic is not None:
                    panoptic.update(prediction.segments, prediction.segments_info, sample)
                if len(pictures) < config.pictures:
                    pictures[sample.name] = draw(sample, prediction, info)
            images += len(batch.samples)
            counter.advance(len(batch.samples))
    model.train(was_training)
    return _summarise(semantic, panoptic, pictures, images / max(seconds, 1e-9), device)


@dataclass
class Prediction:
    """One image's result; a part that was not asked for is None."""

    classes: Tensor | None
    segments: Tensor | None
    segments_info: list[dict[str, Any]]


def _predict(
    model: nn.Module, batch: EvalBatch, info: DatasetInfo, config: EvalConfig, device: torch.device
) -> list[Prediction]:
    pixel_values = batch.pixel_values.to(device)
    outputs = model(pixel_values)
    height, width = pixel_values.shape[-2:]
    where: dict[str, Any] = {
        "input_size": (height, width),
        "image_sizes": batch.image_sizes,
        "sizes": batch.original_sizes,
    }
    count = len(batch.original_sizes)
    classes: Sequence[Tensor | None] = [None] * count
    panoptic: Sequence[tuple[Tensor | None, list[dict[str, Any]]]] = [(None, [])] * count
    if config.semantic:
        classes = semantic_maps(outputs, **where, resize_logits=config.resize_logits)
    if config.panoptic:
        panoptic = panoptic_maps(outputs, **where, thing_classes=sorted(info.things), config=config)
    return [
        Prediction(class_map, segments, segments_info)
        for class_map, (segments, segments_info) in zip(classes, panoptic, strict=True)
    ]


def draw(sample: Sample, prediction: Prediction, info: DatasetInfo) -> Tensor:
    """Image, ground truth and prediction side by side, uint8 `[3, H', W']`."""
    if prediction.segments is not None:
        truth = panoptic_overlay(sample.image, sample.segments, sample.labels.tolist(), info)
        labels = [segment["category_id"] for segment in prediction.segments_info]
        result = panoptic_overlay(sample.image, prediction.segments.cpu() - 1, labels, info)
    else:
        assert prediction.classes is not None
        truth = semantic_overlay(sample.image, sample.semantic_map(), info)
        result = semantic_overlay(sample.image, prediction.classes.cpu(), info)
    return side_by_side(sample.image, truth, result)


def write_pictures(evaluation: Evaluation, folder: Path) -> None:
    """One PNG per picture, named after the image."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in evaluation.pictures.items():
        write_png(picture, str(folder / f"{name.replace('/', '_')}.png"))


def _summarise(
    semantic: SemanticScores | None,
    panoptic: PanopticQuality | None,
    pictures: dict[str, Tensor],
    images_per_second: float,
    device: torch.device,
) -> Evaluation:
    metrics: dict[str, float] = {}
    per_class: dict[str, list[float]] = {}
    if semantic is not None:
        result = semantic.compute()
        metrics |= result.summary
        per_class["iou"] = result.iou
    if panoptic is not None:
        quality = panoptic.compute()
        metrics |= quality.summary
        per_class["pq"] = quality.pq
    score = metrics["miou"] if semantic is not None else metrics.get("pq", 0.0)
    metrics["eval_images_per_second"] = images_per_second
    metrics["peak_memory_mb"] = peak_memory(device) / 1e6
    return Evaluation(metrics, per_class, score, pictures)
