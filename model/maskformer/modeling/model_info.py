"""Count the parameters and multiply-adds of a model without building or running it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from maskformer.config.schema import ModelConfig
from maskformer.modeling.base import build_model
from maskformer.modeling.outputs import MaskOutputs


@dataclass(frozen=True)
class ModelInfo:
    """Trainable parameters, and multiply-adds for one image, by part (`backbone`, ...)."""

    parameters: dict[str, int]
    multiply_adds: dict[str, int]
    size: tuple[int, int]

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def total_multiply_adds(self) -> int:
        """The FLOPs as reported in the literature: one multiply-add counts as one."""
        return sum(self.multiply_adds.values())


def model_info(config: ModelConfig, size: tuple[int, int] = (512, 512)) -> ModelInfo:
    """Count on the meta device, which allocates no weights and computes nothing.

    Args:
        config: the model; frozen norms have no trainable parameters.
        size: height and width of the image in pixels. MaskFormer's count includes semantic
            inference at this size, as the published figures do.

    Raises:
        ValueError: as `build_model`, or `size` is too small.
    """
    with torch.device("meta"):
        model = build_model(config).eval()
        image = torch.empty(1, config.num_channels, *size)
    parts = dict(model.named_children())
    parameters = {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad)
        for name, part in parts.items()
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs = model(image)
        if isinstance(outputs, MaskOutputs):
            _infer(outputs, size)
    counts = counter.get_flop_counts()
    multiply_adds = {
        name: sum(counts[f"{type(model).__name__}.{name}"].values()) // 2 for name in parts
    }
    multiply_adds["inference"] = counter.get_total_flops() // 2 - sum(multiply_adds.values())
    return ModelInfo(parameters, multiply_adds, size)


def _infer(outputs: MaskOutputs, size: tuple[int, int]) -> None:
    """Semantic inference (paper §3.4): masks at stride 4, class scores at full size."""
    masks = torch.einsum("bqc,bchw->bqhw", outputs["mask_embed"][-1], outputs["pixel_features"])
    masks = masks.new_empty(*masks.shape[:2], *size)
    torch.einsum("bqk,bqhw->bkhw", outputs["class_logits"][-1, ..., :-1], masks)
