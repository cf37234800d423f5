"""All metrics that a recipe requests."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from maskformer.config.schema import EvalConfig
from maskformer.data.datasets.folder import Folder
from maskformer.data.sample import Dataset, DatasetInfo, Sample
from maskformer.errors import ConfigError
from maskformer.evaluation.cityscapes_quality import (
    CityscapesQuality,
    check_instance_files,
    read_instances,
)
from maskformer.evaluation.mask_precision import MaskPrecision
from maskformer.evaluation.panoptic_quality import PanopticQuality
from maskformer.evaluation.semantic_quality import SemanticQuality
from maskformer.inference.prediction import Prediction


class Results(NamedTuple):
    """The values of all metrics.

    Attributes:
        metrics: the metrics by name.
        per_class: the metrics of each class by name; NaN if a class never occurs.
        confusion: the confusion matrix of label maps, int64 `[K + 1, K + 1]`.
    """

    metrics: dict[str, float]
    per_class: dict[str, list[float]]
    confusion: Tensor | None


def check_measures(config: EvalConfig, dataset: Dataset) -> None:
    """Check before an evaluation that the data has everything that the metrics need.

    Args:
        config: the metrics.
        dataset: the validation data.

    Raises:
        ConfigError: a metric is not applicable to the classes.
        DatasetError: files are missing.
    """
    if config.cityscapes:
        if not isinstance(dataset, Folder):
            raise ConfigError(
                "eval.cityscapes needs data.format: folder, with instance files next to the label "
                f"files; got {type(dataset).__name__}: set eval.cityscapes: false"
            )
        CityscapesQuality(dataset.info.classes)
        check_instance_files(dataset.files)
    if config.instances:
        MaskPrecision(dataset.info.num_classes, dataset.info.things)


def default_metric(config: EvalConfig) -> str:
    """Return the metric that decides which checkpoint is the best, unless the recipe sets one."""
    if config.semantic:
        return "miou"
    return "pq" if config.panoptic else "ap"


class Measures:
    """The metrics of a recipe, computed over all processes.

    Args:
        info: the classes.
        config: the metrics.
        device: the device of the counts.

    Raises:
        ConfigError: a metric is not applicable to the classes.
    """

    def __init__(self, info: DatasetInfo, config: EvalConfig, device: torch.device) -> None:
        self._semantic: SemanticQuality | None = None
        self._panoptic: PanopticQuality | None = None
        if config.semantic:
            self._semantic = (
                CityscapesQuality(info.classes)
                if config.cityscapes
                else SemanticQuality(info.num_classes)
            ).to(device)
        if config.panoptic:
            self._panoptic = PanopticQuality(
                info.num_classes, info.things, all_crowds=config.all_crowds
            ).to(device)
        self._precision: MaskPrecision | None = None
        if config.instances:
            self._precision = MaskPrecision(info.num_classes, info.things, config.batch_size)
        self._device = device

    def update(self, prediction: Prediction, sample: Sample) -> None:
        """Add an image.

        Raises:
            DatasetError: an additional file of the image cannot be used.
        """
        semantic, classes = self._semantic, prediction.classes
        if semantic is not None and classes is not None:
            semantic.update(classes, sample.semantic_map().to(self._device))
            if isinstance(semantic, CityscapesQuality):
                semantic.add_instances(classes, read_instances(sample))
        if self._panoptic is not None and prediction.panoptic is not None:
            self._panoptic.update(prediction.panoptic, sample)
        if self._precision is not None and prediction.instances is not None:
            self._precision.update(prediction.instances, sample)

    def compute(self) -> Results:
        """Compute the metrics over all images. Must be called by every process."""
        results = Results({}, {}, None)
        for quality in (self._semantic, self._panoptic, self._precision):
            if quality is not None:
                results = _add(results, quality)
        return results


def finite_score(value: float) -> float:
    """Replace NaN, the score if nothing is labelled, by minus infinity, the worst score."""
    return value if math.isfinite(value) else -math.inf


def _add(results: Results, quality: Metric | MaskPrecision) -> Results:
    confusion = results.confusion
    for name, value in quality.compute().items():
        if name == "confusion":
            confusion = value.cpu()
        elif name.endswith("_per_class"):
            # torchmetrics converts a tensor with one element to a scalar.
            results.per_class[name.removesuffix("_per_class")] = value.reshape(-1).tolist()
        else:
            results.metrics[name] = value.item()
    return results._replace(confusion=confusion)
