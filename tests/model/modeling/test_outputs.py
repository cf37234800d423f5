"""Outputs are mappings that keep their class wherever mappings are rebuilt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from helpers.model_cases import tiny_model
from helpers.repository import ROOT
from torch.utils import _pytree as pytree

import maskformer
from maskformer.modeling.outputs import Frames, MaskOutputs, Outputs, PixelOutputs, as_outputs

FRAMES = Frames((64, 64), [(64, 48)], [(32, 24)])
KEYS = {
    "maskformer": ["class_logits", "mask_embed", "pixel_features"],
    "per_pixel": ["pixel_logits"],
    "per_pixel_plus": ["pixel_logits"],
}


def outputs_of(architecture: str) -> Outputs:
    torch.manual_seed(0)
    model = tiny_model(architecture=architecture).eval()
    with torch.no_grad():
        outputs: Outputs = model(torch.randn(1, 3, 64, 64))
    return outputs


@pytest.mark.parametrize("architecture", KEYS)
def test_every_model_returns_its_class_of_outputs(architecture: str) -> None:
    outputs = outputs_of(architecture)
    assert isinstance(outputs, MaskOutputs if architecture == "maskformer" else PixelOutputs)
    assert list(outputs) == KEYS[architecture]
    assert all(outputs[name] is value for name, value in outputs.items())


@pytest.mark.parametrize("architecture", KEYS)
def test_other_hands_do_not_matter(architecture: str) -> None:
    """Of a dict with the same keys comes the same; accelerate rebuilds what it converts."""
    outputs = outputs_of(architecture)
    [expected] = outputs.semantic(FRAMES)
    assert expected.shape == (32, 24)
    plain = as_outputs(dict(outputs))
    converted = convert_outputs_to_fp32(lambda: outputs)()
    for other in (plain, converted):
        assert type(other) is type(outputs)
        [found] = other.semantic(FRAMES)
        assert torch.equal(found, expected)
    assert as_outputs(outputs) is outputs


@pytest.mark.parametrize("architecture", ["maskformer", "per_pixel"])
def test_one_view_is_the_plain_answer(architecture: str) -> None:
    outputs = outputs_of(architecture)
    view = outputs.view((64, 64), (64, 48), flipped=False)
    [expected] = outputs.semantic(FRAMES)
    assert torch.equal(outputs.average_views([view], (32, 24)), expected)  # type: ignore[list-item]


@pytest.mark.parametrize("architecture", KEYS)
def test_pytorch_finds_the_tensors(architecture: str) -> None:
    """DistributedDataParallel with a static graph, `torch.export` and `torch.func` do."""
    outputs = outputs_of(architecture)
    leaves, structure = pytree.tree_flatten(outputs)
    assert all(map(torch.equal, leaves, outputs.values()))
    again = pytree.tree_unflatten(leaves, structure)
    assert type(again) is type(outputs)
    assert list(again) == list(outputs)
    model = tiny_model(architecture=architecture).eval()
    x = torch.randn(2, 3, 64, 64)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(dict(exported(x)), dict(model(x)))


def test_exported_programs_take_images_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snippet of docs/models.md. Convolutions are chosen by size, which no program may keep."""
    _, text = re.findall(r"```python\n(.*?)```", (ROOT / "docs/models.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    maskformer.MaskFormer.from_config("quickstart", num_classes=3).save_pretrained("runs/mine")
    names: dict[str, Any] = {}
    exec(text, names)
    program: Any = names["program"]
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in used if "mfkernels" in name]
    loaded = program.module()
    for size in ((64, 96), (320, 256)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(dict(loaded(x)), dict(names["model"](x)), rtol=1e-3, atol=1e-3)
