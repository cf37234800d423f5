"""MaskFormer: mask classification for semantic and panoptic segmentation (NeurIPS 2021).

Cheng, Schwing, Kirillov: "Per-Pixel Classification is Not All You Need for Semantic Segmentation".
"""

from maskformer.config import Config, ConfigError, ModelConfig, config_names, load_config
from maskformer.image_processor import ImageProcessor
from maskformer.model import (
    MaskFormer,
    PerPixelBaseline,
    PerPixelBaselinePlus,
    SegmentationModel,
    build_model,
)
from maskformer.weights import LoadReport, WeightsMismatchError

__all__ = [
    "Config",
    "ConfigError",
    "ImageProcessor",
    "LoadReport",
    "MaskFormer",
    "ModelConfig",
    "PerPixelBaseline",
    "PerPixelBaselinePlus",
    "SegmentationModel",
    "WeightsMismatchError",
    "build_model",
    "config_names",
    "load_config",
]
