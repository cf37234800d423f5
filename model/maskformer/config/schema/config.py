"""A whole recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import model_validator

from maskformer.config.schema.criterion import CriterionConfig
from maskformer.config.schema.data import DataConfig
from maskformer.config.schema.evaluation import EvalConfig, PredictConfig
from maskformer.config.schema.fields import MAX_BANDS, MIDDLE_LEVEL, Section
from maskformer.config.schema.model import ModelConfig
from maskformer.config.schema.train import (
    InstanceMetric,
    PanopticMetric,
    SemanticMetric,
    TrainConfig,
)


class Config(Section):
    """A whole recipe. docs/recipe.md lists its keys; `load_config` reads one."""

    model: ModelConfig = ModelConfig()
    """The network."""
    criterion: CriterionConfig = CriterionConfig()
    """The loss."""
    data: DataConfig
    """Images and labels, and how they are processed."""
    train: TrainConfig = TrainConfig()
    """The training run."""
    eval: EvalConfig = EvalConfig()
    """What evaluation measures."""
    predict: PredictConfig = PredictConfig()
    """How `maskformer predict` processes images and draws results."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_normalisation(cls, values: Any) -> Any:
        """Set mean and standard deviation if there are not three channels, for which ImageNet's are
        the default: 0..255 becomes -1..1.
        """
        if not isinstance(values, Mapping):
            return values
        data, model = values.get("data"), values.get("model", {})
        channels = data.get("channels", 3) if isinstance(data, Mapping) else 3
        count = len(channels) if isinstance(channels, list | tuple) else channels
        if (
            not isinstance(count, int)
            or count == 3
            or not 0 < count <= MAX_BANDS
            or not isinstance(model, Mapping)
            or {"pixel_mean", "pixel_std"} & set(model)
        ):
            return values
        middle = (MIDDLE_LEVEL,) * count
        return {**values, "model": {**model, "pixel_mean": middle, "pixel_std": middle}}

    @model_validator(mode="after")
    def _same_channels(self) -> Self:
        wanted = self.data.num_channels
        if wanted != self.model.num_channels:
            raise ValueError(
                f"data.channels gives images of {wanted} channels, but model.pixel_mean and "
                f"model.pixel_std have {self.model.num_channels} values: give {wanted} of each, or "
                "remove both"
            )
        return self

    @model_validator(mode="after")
    def _instances_need_masks(self) -> Self:
        if self.eval.instances and self.model.architecture != "maskformer":
            raise ValueError(
                f"eval.instances needs a model with masks, but model.architecture is "
                f"{self.model.architecture}, which does not separate objects"
            )
        return self

    @model_validator(mode="after")
    def _best_metric_is_measured(self) -> Self:
        metric = self.train.best_metric
        for names, measured, switch in (
            (get_args(SemanticMetric), self.eval.semantic, "eval.semantic"),
            (get_args(PanopticMetric), self.eval.panoptic, "eval.panoptic"),
            (get_args(InstanceMetric), self.eval.instances, "eval.instances"),
        ):
            if metric in names and not measured:
                raise ValueError(
                    f"train.best_metric is {metric}, which is not measured: {switch} is off"
                )
        return self
