"""Semantic, panoptic and instance inference from class logits and factored masks."""

import mfkernels.ops.segmentation.operator  # noqa: F401
from mfkernels.ops.segmentation.instances import Instances, instance_segmentation
from mfkernels.ops.segmentation.panoptic import panoptic_segmentation
from mfkernels.ops.segmentation.semantic import (
    average_semantic_segmentation,
    semantic_segmentation,
)
from mfkernels.ops.segmentation.views import SegmentationView

__all__ = [
    "Instances",
    "SegmentationView",
    "average_semantic_segmentation",
    "instance_segmentation",
    "panoptic_segmentation",
    "semantic_segmentation",
]
