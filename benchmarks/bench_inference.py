"""End-to-end inference: from the network input to label maps at the original image size.

- `native`: the model as `maskformer.Predictor` runs it. On a CPU it uses channels-last memory
  (except for Swin) and computes masks directly from the last convolution.
- `native-bf16`: the same with `eval.precision: bf16`, which always uses channels-last memory.
- `reference`: the same model in plain PyTorch without these optimisations, followed by the official
  post-processing.
- `transformers`: Hugging Face's MaskFormer with the same weights and its own post-processing.

Correctness is checked on the class and mask logits.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness.comparison import NATIVE, NATIVE_BF16, REFERENCE, Comparison, Floor, Provider
from harness.plugin import comparison_test
from torch import Tensor, nn

import maskformer
import mfkernels
from maskformer.inference.ready import ready_to_predict
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.outputs import Frames


@dataclass(frozen=True)
class Case:
    recipe: str
    images: int
    size: tuple[int, int] = (512, 683)
    """Size of the original images, which are padded but not resized for the network."""
    classes: int = 150

    @property
    def frames(self) -> Frames:
        height, width = (-(-side // 32) * 32 for side in self.size)
        return Frames((height, width), [self.size] * self.images, [self.size] * self.images)


CASES = {
    "R50 1x512x683": Case("ade20k/r50", 1),
    "R50 8x512x683": Case("ade20k/r50", 8),
    "Swin-T 1x512x683": Case("ade20k/swin_t", 1),
}
BF16_TOLERANCE = 5e-2


def build(case: Case, device: torch.device) -> SegmentationModel:
    torch.manual_seed(0)
    model = maskformer.MaskFormer.from_config(case.recipe, num_classes=case.classes)
    return model.to(device).eval()


def compared(outputs: Any) -> list[Tensor]:
    """The outputs to check: class and mask logits of the last layer."""
    if "mask_logits" in outputs:
        masks = outputs["mask_logits"][-1]
    else:
        masks = mfkernels.mask_logits(outputs["mask_embed"][-1:], outputs["pixel_features"])[0]
    return [outputs["class_logits"][-1], masks]


@torch.inference_mode()
def label(model: nn.Module, x: Tensor, frames: Frames, backend: str) -> Any:
    with mfkernels.use_backend(backend):  # type: ignore[arg-type]
        outputs = model(x)
        outputs.semantic(frames)
    return outputs


def transformers_provider(case: Case, x: Tensor, *, bf16: bool = False) -> Provider:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        build(case, torch.device("cpu")).save_pretrained(folder, format="hf")
        maskformer.ImageProcessor().save_pretrained(Path(folder))
        model = transformers.MaskFormerForInstanceSegmentation.from_pretrained(folder)
        processor = transformers.MaskFormerImageProcessor.from_pretrained(folder)
    model.config.use_auxiliary_loss = False
    model.to(x.device).eval()

    @torch.inference_mode()
    def forward() -> Any:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            outputs = model(pixel_values=x)
        processor.post_process_semantic_segmentation(outputs, [case.size] * case.images)
        return outputs

    return Provider(
        forward,
        result=lambda found: [
            found.class_queries_logits.float(),
            found.masks_queries_logits.float(),
        ],
        tolerance=BF16_TOLERANCE if bf16 else None,
    )


def make(name: str, device: torch.device, shrink: bool) -> Comparison:
    case = CASES[name]
    if shrink:
        case = replace(case, images=1, size=(64, 60), classes=11)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case.images, 3, *case.frames.input_size, generator=generator).to(device)
    model = build(case, device)

    def provider(ready: nn.Module, backend: str) -> Provider:
        return Provider(partial(label, ready, x, case.frames, backend), result=compared)

    def ours_in_bf16() -> Provider:
        ready = provider(ready_to_predict(model, "bf16"), "auto")
        return replace(ready, tolerance=BF16_TOLERANCE)

    def truth() -> list[Tensor]:
        with torch.inference_mode():
            return compared(build(case, device).double()(x.double()))

    return Comparison(
        {
            NATIVE: lambda: provider(ready_to_predict(model), "auto"),
            NATIVE_BF16: ours_in_bf16,
            REFERENCE: lambda: provider(model, "reference"),
            "transformers": lambda: transformers_provider(case, x),
            "transformers-bf16": lambda: transformers_provider(case, x, bf16=True),
        },
        truth=truth,
        tolerance=1e-4,
        floor=Floor(0, 0),
        given=[x],
        images=case.images,
    )


test_inference = comparison_test(
    CASES, [NATIVE, NATIVE_BF16, REFERENCE, "transformers", "transformers-bf16"], make
)
