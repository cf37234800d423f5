"""Export of a trained model as an ONNX file, which runs without PyTorch and this project."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.config.choices import ExportedOutputs
from maskformer.config.schema import COARSEST_STRIDE
from maskformer.errors import OutputError, UsageError
from maskformer.inference.image_processor import ImageProcessor
from maskformer.modeling.base import SegmentationModel
from maskformer.modeling.folding import fold_norms
from maskformer.modeling.layout import prefers_channels_last
from maskformer.modeling.maskformer import MaskFormer
from maskformer.modeling.outputs import STRIDE, Size, resize
from maskformer.system.paths import given_path
from maskformer.system.writing import replace_file
from maskformer.training.checkpoints.contents import load_info, resolve_checkpoint
from maskformer.training.run_folder import is_run
from maskformer.weights.locate import STATE
from mfkernels import use_backend

EXAMPLE: Size = (224, 288)
"""Size of the traced image if the graph accepts any size; no side is a multiple of the other."""
NAMES: dict[ExportedOutputs, list[str]] = {
    "classes": ["classes"],
    "queries": ["class_logits", "mask_logits"],
}


class Exported(NamedTuple):
    """A file that was written."""

    file: Path
    megabytes: float
    agreement: float | None
    """Fraction of pixels with the same class in ONNX Runtime and PyTorch, or of logits that differ
    by at most 0.1 % of the largest one; None if ONNX Runtime is not installed."""


class ImagesToOutputs(nn.Module):
    """Computes the requested outputs from unnormalised images, with PyTorch's operators only."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: SegmentationModel, outputs: ExportedOutputs) -> None:
        super().__init__()
        self.model = fold_norms(model)
        self.outputs = outputs
        self.step = max(model.config.size_divisibility, 1)
        for name, values in (("mean", model.config.pixel_mean), ("std", model.config.pixel_std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute `classes [B, H, W]` int64 (paper §3.4), or `class_logits [B, Q, K+1]` and
        `mask_logits [B, Q, h, w]` at stride 4 of the padded image, from `images [B, C, H, W]` in
        0..255, which are padded at the right and bottom.
        """
        height, width = images.shape[-2:]
        padding = (0, -width % self.step, 0, -height % self.step)
        padded = F.pad((images - self.mean) / self.std, padding)
        if not isinstance(self.model, MaskFormer):
            scores = self.model(padded)["pixel_logits"][-1]
            # By the stride, as `PixelOutputs` does: the input need not be a multiple of it.
            size = (STRIDE * scores.shape[-2], STRIDE * scores.shape[-1])
            scores = resize(scores, size)[..., :height, :width]
            if self.step % STRIDE:  # patches without padding leave out the last rows and columns
                scores = resize(scores, (height, width))
            return scores.argmax(1)
        found = self.model(padded, with_mask_logits=True)
        classes, masks = found["class_logits"][-1], found["mask_logits"][-1]
        if self.outputs == "queries":
            return classes, masks
        masks = resize(masks, (padded.shape[-2], padded.shape[-1]))[..., :height, :width].sigmoid()
        return torch.einsum("bqk,bqhw->bkhw", classes.softmax(-1)[..., :-1], masks).argmax(1)


def export(
    source: str | Path,
    target: str | Path,
    *,
    outputs: ExportedOutputs = "classes",
    size: Size | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a model as an ONNX file.

    The file's input `images` is float32 `[B, C, H, W]`, 0 to 255, RGB, already resized for the
    model; the metadata of the file says to which size the test pipeline would resize. Normalising
    and padding are part of the graph. B, H and W are dynamic unless `size` is given.

    Args:
        source: a run, a folder, a weight file or a hub id.
        target: the file to write.
        outputs: `"classes"`, int64 `[B, H, W]`; or `"queries"`, `class_logits [B, Q, K+1]` and
            `mask_logits [B, Q, h, w]`, from which every kind of result can be computed.
        size: fix `(H, W)` in pixels. Required for a Swin backbone, whose windows depend on it.
        overwrite: replace an existing file.

    Raises:
        CheckpointError, HubError: there is no checkpoint, or the hub cannot be reached.
        UsageError: packages are missing or too old, or `outputs` or `size` do not suit the model.
        OutputError: the file exists, its name does not end in `.onnx`, or it would lie in a run.
        OSError: the file cannot be written.
    """
    target, source = given_path("target", target), given_path("source", source)
    _check_target(target, overwrite)
    with _packages():
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    checkpoint = resolve_checkpoint(source)
    model = SegmentationModel.from_pretrained(checkpoint).eval()
    _check_fit(model, outputs, size)
    network = ImagesToOutputs(model, outputs)
    channels = model.config.num_channels
    example = 255 * torch.rand(2, channels, *(size or EXAMPLE))
    with _packages():
        program = _program(network, example, NAMES[outputs], fixed=size is not None)
    program.model.metadata_props.update(_metadata(checkpoint, model))
    replace_file(target, lambda file: program.save(str(file), external_data=False))
    megabytes = target.stat().st_size / 1e6
    return Exported(target, megabytes, _agreement(network, target, example))


def _check_target(target: Path, overwrite: bool) -> None:
    if target.suffix != ".onnx":
        raise OutputError(f"{target} must end in .onnx, the only supported format")
    if target.is_dir() or (os.path.lexists(target) and not overwrite):
        raise OutputError(f"{target} already exists: choose another file, or pass --overwrite")
    if is_run(target.parent) or (target.parent / STATE).exists():
        raise OutputError(f"{target.parent} is a training run: choose another folder")


@contextmanager
def _packages() -> Iterator[None]:
    """Say what to install if a package, or a module that PyTorch imports while it exports, is
    missing.
    """
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"ONNX export needs packages that are missing or too old ({error.name}): pip install "
            "--upgrade onnx onnxscript onnxruntime, or this project with '.[onnx]'"
        ) from error


def _check_fit(model: SegmentationModel, outputs: ExportedOutputs, size: Size | None) -> None:
    if outputs == "queries" and not isinstance(model, MaskFormer):
        raise UsageError("outputs 'queries' need a model with masks, got a per-pixel one")
    if size is None and not prefers_channels_last(model):
        raise UsageError(
            "the windows of a Swin depend on the size of the image: pass --size HEIGHTxWIDTH"
        )
    if size is not None and min(size) < COARSEST_STRIDE:
        raise UsageError(f"--size must be at least {COARSEST_STRIDE}x{COARSEST_STRIDE}, got {size}")


def _program(network: nn.Module, example: Tensor, names: list[str], *, fixed: bool) -> Any:
    """Export a network to ONNX, for images of a fixed size or of any size."""
    dynamic = dict.fromkeys((0,) if fixed else (0, 2, 3), torch.export.Dim.DYNAMIC)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with use_backend("reference"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within PyTorch itself
        traced = torch.export.export(network, (example,), dynamic_shapes={"images": dynamic})
        return torch.onnx.export(
            traced, dynamo=True, verbose=False, input_names=["images"], output_names=names
        )


def _metadata(checkpoint: Path, model: SegmentationModel) -> dict[str, str]:
    processor, info = ImageProcessor.from_pretrained(checkpoint), load_info(checkpoint, model)
    return {
        "classes": json.dumps(info.classes, ensure_ascii=False),
        "things": json.dumps(sorted(info.things)),
        "shortest_edge": json.dumps(processor.short_side),
        "longest_edge": json.dumps(processor.max_side),
    }


@torch.inference_mode()
def _agreement(network: nn.Module, file: Path, images: Tensor) -> float | None:
    """Compute `Exported.agreement`."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images.numpy()})
    with use_backend("reference"):
        expected = network(images)
    pairs = zip(expected if isinstance(expected, tuple) else (expected,), found, strict=True)
    return min(float(_is_same(a.numpy(), b).mean()) for a, b in pairs)


def _is_same(expected: NDArray[Any], found: NDArray[Any]) -> NDArray[np.bool_]:
    if expected.dtype == np.int64:
        return expected == found
    return np.abs(expected - found) <= 1e-3 * np.abs(expected).max()
