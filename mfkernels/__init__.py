"""Kernels for mask-classification models such as MaskFormer."""

import mfkernels.selfcheck.first_use  # noqa: F401
from mfkernels.backend import use_backend
from mfkernels.criterion import MaskFormerCriterion
from mfkernels.explanation import explain
from mfkernels.graphs import GraphedCriterion, warmup
from mfkernels.ops.assignment import (
    assignment_to_indices,
    assignment_to_pairs,
    batch_linear_assignment,
    batch_linear_assignment_with_status,
    linear_sum_assignment,
)
from mfkernels.ops.conv3x3 import conv3x3
from mfkernels.ops.focal_dice import dice_loss, focal_dice_loss, point_loss, sigmoid_focal_loss
from mfkernels.ops.group_norm import group_norm
from mfkernels.ops.mask_logits import mask_logits
from mfkernels.ops.mask_loss import mask_loss
from mfkernels.ops.matching_cost import matching_cost
from mfkernels.ops.sample_points import sample_points
from mfkernels.ops.segmentation import (
    Instances,
    SegmentationView,
    average_semantic_segmentation,
    instance_segmentation,
    panoptic_segmentation,
    semantic_segmentation,
)
from mfkernels.ops.window_attention import window_attention
from mfkernels.targets import SegmentTargets

__version__ = "0.1.0"

__all__ = [
    "GraphedCriterion",
    "Instances",
    "MaskFormerCriterion",
    "SegmentTargets",
    "SegmentationView",
    "assignment_to_indices",
    "assignment_to_pairs",
    "average_semantic_segmentation",
    "batch_linear_assignment",
    "batch_linear_assignment_with_status",
    "conv3x3",
    "dice_loss",
    "explain",
    "focal_dice_loss",
    "group_norm",
    "instance_segmentation",
    "linear_sum_assignment",
    "mask_logits",
    "mask_loss",
    "matching_cost",
    "panoptic_segmentation",
    "point_loss",
    "sample_points",
    "semantic_segmentation",
    "sigmoid_focal_loss",
    "use_backend",
    "warmup",
    "window_attention",
]
