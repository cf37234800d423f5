"""Everything that a recipe wants to be measured."""

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


class Figures(NamedTuple):
    """What came out.

    Attributes:
        metrics: by name.
        per_class: by name, one each class; NaN where one never occurs.
        confusion: int64 `[K + 1, K + 1]`, of label maps.
    """

    metrics: dict[str, float]
    per_class: dict[str, list[float]]
    confusion: Tensor | None


def check_measures(config: EvalConfig, dataset: Dataset) -> None:
    """Says early what evaluation would need of the data.

    Args:
        dataset: of validation.

    Raises:
        ConfigError: what is to be measured does not fit the classes.
        DatasetError: files are missing.
    """
    if config.cityscapes:
        if not isinstance(dataset, Folder):
            raise ConfigError(
                "eval.cityscapes needs data.format: folder, with files of instances beside the "
                f"label files; got {type(dataset).__name__}: set eval.cityscapes: false"
            )
        CityscapesQuality(dataset.info.classes)
        check_instance_files(dataset.files)
    if config.instances:
        MaskPrecision(dataset.info.num_classes, dataset.info.things)


def default_metric(config: EvalConfig) -> str:
    """What "best" means unless a recipe says otherwise."""
    if config.semantic:
        return "miou"
    return "pq" if config.panoptic else "ap"


class Measures:
    """The metrics of a recipe, over all processes.

    Args:
        info: the classes.
        config: what is measured.
        device: where it is counted.

    Raises:
        ConfigError: what is to be measured does not fit the classes.
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
        """Adds an image.

        Raises:
            DatasetError: a file that belongs to it cannot be used.
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

    def compute(self) -> Figures:
        """The figures over all images; every process must ask for them."""
        figures = Figures({}, {}, None)
        for quality in (self._semantic, self._panoptic, self._precision):
            if quality is not None:
                figures = _add(figures, quality)
        return figures


def finite_score(value: float) -> float:
    """Where nothing was labelled, nothing is worse."""
    return value if math.isfinite(value) else -math.inf


def _add(figures: Figures, quality: Metric | MaskPrecision) -> Figures:
    confusion = figures.confusion
    for name, value in quality.compute().items():
        if name == "confusion":
            confusion = value.cpu()
        elif name.endswith("_per_class"):
            # torchmetrics makes a number of a tensor that holds a single one.
            figures.per_class[name.removesuffix("_per_class")] = value.reshape(-1).tolist()
        else:
            figures.metrics[name] = value.item()
    return figures._replace(confusion=confusion)
