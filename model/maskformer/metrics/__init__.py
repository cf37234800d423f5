"""Scores of semantic and panoptic segmentation."""

from maskformer.metrics.panoptic import (
    PanopticQuality,
    ground_truth_as_panoptic,
    semantic_as_panoptic,
)
from maskformer.metrics.semantic import SemanticQuality

__all__ = ["PanopticQuality", "SemanticQuality", "ground_truth_as_panoptic", "semantic_as_panoptic"]
