"""MaskFormer: mask classification for semantic and panoptic segmentation (NeurIPS 2021).

Cheng, Schwing, Kirillov: "Per-Pixel Classification is Not All You Need for Semantic Segmentation".
"""

from typing import TYPE_CHECKING

from maskformer.lazy import imported_on_use

if TYPE_CHECKING:
    from maskformer.config.load import load_config
    from maskformer.config.recipes import config_names
    from maskformer.config.schema import Config, ModelConfig
    from maskformer.errors import ConfigError, MaskFormerError
    from maskformer.inference.image_processor import ImageProcessor
    from maskformer.modeling.base import SegmentationModel, build_model
    from maskformer.modeling.maskformer import MaskFormer
    from maskformer.modeling.per_pixel import PerPixelBaseline, PerPixelBaselinePlus
    from maskformer.predictor import Predictor
    from maskformer.weights import LoadReport, WeightsMismatchError

__all__ = [
    "Config",
    "ConfigError",
    "ImageProcessor",
    "LoadReport",
    "MaskFormer",
    "MaskFormerError",
    "ModelConfig",
    "PerPixelBaseline",
    "PerPixelBaselinePlus",
    "Predictor",
    "SegmentationModel",
    "WeightsMismatchError",
    "build_model",
    "config_names",
    "load_config",
]

if not TYPE_CHECKING:
    # Imported on first use, so that the command line in this package can start without PyTorch.
    _MODULES = {
        "config.load": ("load_config",),
        "config.schema": ("Config", "ModelConfig"),
        "errors": ("ConfigError", "MaskFormerError"),
        "inference.image_processor": ("ImageProcessor",),
        "modeling.base": ("SegmentationModel", "build_model"),
        "modeling.maskformer": ("MaskFormer",),
        "modeling.per_pixel": ("PerPixelBaseline", "PerPixelBaselinePlus"),
        "config.recipes": ("config_names",),
        "predictor": ("Predictor",),
        "weights": ("LoadReport", "WeightsMismatchError"),
    }

    __getattr__ = imported_on_use(__name__, _MODULES)

    def __dir__():
        return sorted({*globals(), *__all__})
