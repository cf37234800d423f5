"""The predictions of a model, for evaluation, pictures and result files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mfkernels
from maskformer.config.schema import EvalConfig
from maskformer.data import DatasetInfo, EvalBatch
from maskformer.data.sample import naming
from maskformer.inference.segmentation import Segmentation
from maskformer.inference.test_time_augmentation import AugmentedViews, semantic_map_of_views
from maskformer.modeling.autocast import predict
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.outputs import Frames, Outputs, Size


@dataclass
class Prediction:
    """The result for one image. Parts that were not requested are None."""

    classes: Tensor | None = None
    """`[H, W]` int64, the class of each pixel."""
    panoptic: tuple[Tensor, list[dict[str, Any]]] | None = None
    """`[H, W]` int32 segment ids, and a dict per segment; see `mfkernels.panoptic_segmentation`."""
    instances: mfkernels.Instances | None = None
    """Masks, classes, scores and boxes of the objects."""

    def numpy(self) -> dict[str, Any]:
        """Return the parts that exist as NumPy arrays, by name: `classes`, `panoptic` (map and
        segments) and `instances` (`masks`, `labels`, `scores` and `boxes`).
        """
        found: dict[str, Any] = {}
        if self.classes is not None:
            found["classes"] = self.classes.cpu().numpy()
        if self.panoptic is not None:
            ids, segments = self.panoptic
            found["panoptic"] = ids.cpu().numpy(), segments
        if self.instances is not None:
            parts = self.instances._asdict().items()
            found["instances"] = {name: values.cpu().numpy() for name, values in parts}
        return found

    def segmentation(self, min_score: float = 0.0) -> Segmentation:
        """Return the part to draw: the panoptic segments if they exist, otherwise the instances,
        otherwise the classes.

        Args:
            min_score: instances with a lower score are not drawn.

        Raises:
            ValueError: the prediction is empty.
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
    tta: AugmentedViews | None = None,
    with_instances: bool = False,
) -> list[Prediction]:
    """Predict label maps, segments and instances of a batch, in the original sizes.

    Images run together only if each of them would be padded to the same size on its own.
    Convolutions and attention see the padding, so results would otherwise depend on the other
    images.

    Args:
        model: the model on `device`, in evaluation mode.
        batch: the images.
        info: the classes.
        config: `semantic` and `panoptic` decide what is predicted.
        device: the device.
        tta: average the class scores over these views.
        with_instances: also predict instances of the thing classes.
    """
    predictions = [Prediction() for _ in batch.samples]
    if config.panoptic or with_instances or tta is None:
        pixel_values = batch.pixel_values.to(device, non_blocking=True)
        for (height, width), indices in _same_input(batch).items():
            outputs = predict(model, pixel_values[indices, :, :height, :width].contiguous())
            frames = Frames(
                (height, width),
                [batch.image_sizes[index] for index in indices],
                [batch.original_sizes[index] for index in indices],
            )
            group = [predictions[index] for index in indices]
            _fill(group, outputs, frames, info, config, tta is None, with_instances)
    if config.semantic and tta is not None:
        for sample, prediction in zip(batch.samples, predictions, strict=True):
            with naming(sample.name):
                prediction.classes = semantic_map_of_views(
                    model, sample.image, tta, device, resize_logits=config.resize_logits
                )
    return predictions


def _fill(
    group: Sequence[Prediction],
    outputs: Outputs,
    frames: Frames,
    info: DatasetInfo,
    config: EvalConfig,
    with_classes: bool,
    with_instances: bool,
) -> None:
    """Fill in the predictions of a group of images from the model's outputs for them."""
    things = sorted(info.things)
    if config.semantic and with_classes:
        maps = outputs.semantic(frames, resize_logits=config.resize_logits)
        for prediction, classes in zip(group, maps, strict=True):
            prediction.classes = classes
    if config.panoptic:
        found = outputs.panoptic(
            frames,
            things,
            object_mask_threshold=config.object_mask_threshold,
            overlap_threshold=config.overlap_threshold,
        )
        for prediction, segments in zip(group, found, strict=True):
            prediction.panoptic = segments
    if with_instances:
        for prediction, objects in zip(group, outputs.instances(frames, things), strict=True):
            prediction.instances = objects


def _same_input(batch: EvalBatch) -> dict[Size, list[int]]:
    """Group the indices of images by the size of their input."""
    groups: dict[Size, list[int]] = {}
    for index, size in enumerate(batch.input_sizes):
        groups.setdefault(size, []).append(index)
    return groups
