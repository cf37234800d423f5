"""Small models for tests, and the golden parameter counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from maskformer.config.load import merge_model_config
from maskformer.config.schema import ModelConfig
from maskformer.modeling.base import SegmentationModel, build_model

TINY: dict[str, Any] = {
    "num_classes": 7,
    "backbone": {"name": "test_resnet"},
    "pixel_decoder": {"channels": 32, "mask_channels": 24, "groups": 8},
    "decoder": {"queries": 9, "channels": 16, "heads": 4, "feedforward": 48, "layers": 3},
}

PARAMETERS = {
    # docs/facts.md, Parameter counts
    "ade20k/r50": 41_254_743,
    "ade20k/r101": 60_194_647,
    "ade20k/r101c": 60_318_039,
    "ade20k/swin_t": 41_757_009,
    "ade20k/swin_s": 63_074_913,
    "ade20k/swin_b": 101_829_391,
    "ade20k/swin_b_in1k": 101_829_391,
    "ade20k/swin_l": 211_575_627,
    "ade20k/per_pixel_r50": 31_033_942,
    "ade20k/per_pixel_plus_r50": 41_228_736,
    "ade20k_panoptic/r50_6enc": 45_016_407,
    "ade20k_panoptic/r101_6enc": 63_956_311,
    "ade20k_full/r50": 41_433_872,
    "ade20k_full/r101": 60_373_776,
    "ade20k_full/r101c": 60_497_168,
    "ade20k_full/per_pixel_r50": 31_213_071,
    "ade20k_full/per_pixel_plus_r50": 41_407_168,
    "cityscapes/r101": 60_160_980,
    "cityscapes/r101c": 60_284_372,
    "cityscapes/per_pixel_r101": 49_940_179,
    "cityscapes/per_pixel_plus_r101": 60_135_104,
    "coco_panoptic/r50_6enc": 45_012_038,
    "coco_panoptic/r101_6enc": 63_951_942,
    "coco_panoptic/swin_t": 41_752_640,
    "coco_panoptic/swin_s": 63_070_544,
    "coco_panoptic/swin_b": 101_825_022,
    "coco_panoptic/swin_b_in1k": 101_825_022,
    "coco_panoptic/swin_l": 211_571_258,
    "coco_stuff_10k/r50": 41_260_140,
    "coco_stuff_10k/r101": 60_200_044,
    "coco_stuff_10k/r101c": 60_323_436,
    "coco_stuff_10k/per_pixel_r50": 31_039_339,
    "coco_stuff_10k/per_pixel_plus_r50": 41_234_112,
    "mapillary/r50": 41_232_898,
}
"""Trainable parameters. docs/facts.md gives most counts of R50, R101, Swin and the baselines. The
others follow: R101c has 123,392 more than R101 (a stem of three convolutions, and 128 channels into
the first stage), and R101 has 18,939,904 more than R50. A class adds 257 parameters, or 256 to
`per_pixel_plus`, where it is a query.
"""


def tiny_config(**overrides: Any) -> ModelConfig:
    return merge_model_config(ModelConfig.model_validate(TINY), overrides)


def tiny_model(**overrides: Any) -> SegmentationModel:
    return build_model(tiny_config(**overrides)).eval()


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest absolute difference, relative to the largest absolute true value."""
    value, truth = value.detach(), truth.detach()
    return float((value - truth).abs().max() / truth.abs().max())


def randomise(module: nn.Module) -> None:
    """Randomise norms and biases, whose initial values are all alike and would hide mix-ups."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    with torch.no_grad():
        for name, tensor in tensors:
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.ndim == 1 and name.endswith("weight"):
                tensor.uniform_(0.3, 1.2)
            elif tensor.ndim == 1:
                tensor.normal_(std=0.3)
