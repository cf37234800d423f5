"""ONNX files of models, run by ONNX Runtime."""

from __future__ import annotations

import builtins
import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.model_cases import randomise, relative_error, tiny_config, tiny_model
from helpers.repository import ROOT
from PIL import Image
from typer.testing import CliRunner

from maskformer import ImageProcessor
from maskformer.cli import app
from maskformer.config.schema import BackboneConfig
from maskformer.data import DatasetInfo, Normalize
from maskformer.data.palette import palette
from maskformer.errors import CheckpointError, OutputError, UsageError
from maskformer.export import ImagesToOutputs, export
from maskformer.modeling.base import SegmentationModel, build_model
from maskformer.modeling.outputs import Frames
from maskformer.training.checkpoints.writing import info_to_json
from maskformer.training.run_folder import mark_run
from mfkernels import use_backend

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZES = [(1, 96, 64), (3, 75, 101), (2, 224, 288)]
"""Batch, height and width."""


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    model = tiny_model()
    model.class_names = tuple("abcdefg")
    randomise(model)
    return model


@pytest.fixture(scope="module")
def folder(model: SegmentationModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    ImageProcessor(320, 640).save_pretrained(folder)
    return folder


def images(batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator).float()


def run(file: Path, given: torch.Tensor) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found: list[np.ndarray[Any, Any]] = session.run(None, {"images": given.numpy()})
    return found


@pytest.mark.long
def test_classes_are_those_of_predict(
    model: SegmentationModel, folder: Path, tmp_path: Path
) -> None:
    made = export(folder, tmp_path / "a" / "model.onnx")
    assert made.agreement == 1
    assert made.megabytes == pytest.approx(made.file.stat().st_size / 1e6)
    normalize = ImageProcessor().normalize
    for batch, height, width in SIZES:
        given = images(batch, height, width)
        (classes,) = run(made.file, given)
        pixel_values = normalize([image.byte() for image in given])
        sizes = [(height, width)] * batch
        frames = Frames((pixel_values.shape[2], pixel_values.shape[3]), sizes, sizes)
        with torch.no_grad():
            expected = torch.stack(model(pixel_values).semantic(frames))
        assert classes.dtype == np.int64
        assert (torch.from_numpy(classes) != expected).float().mean() < 1e-3
    session = onnxruntime.InferenceSession(str(made.file))
    stored = session.get_modelmeta().custom_metadata_map
    assert json.loads(stored["classes"]) == list("abcdefg")
    assert json.loads(stored["things"]) == []
    assert (stored["shortest_edge"], stored["longest_edge"]) == ("320", "640")


@pytest.mark.parametrize(
    ("backbone", "size_divisibility"), [(None, 0), (None, 32), ("convnext_atto", 0)]
)
def test_classes_of_a_per_pixel_model_are_those_of_predict(
    backbone: str | None, size_divisibility: int
) -> None:
    """ConvNeXt leaves out the last rows and columns if its patches do not divide the sides."""
    config = tiny_config(architecture="per_pixel", size_divisibility=size_divisibility)
    if backbone is not None:
        given = BackboneConfig(name=backbone, pretrained=False)
        config = config.model_copy(update={"backbone": given})
    model = build_model(config).eval()
    randomise(model)
    normalize = Normalize.from_config(config)
    for batch, height, width in SIZES:
        given = images(batch, height, width)
        pixel_values = normalize([image.byte() for image in given])
        sizes = [(height, width)] * batch
        frames = Frames((pixel_values.shape[2], pixel_values.shape[3]), sizes, sizes)
        with torch.no_grad():
            classes = ImagesToOutputs(model, "classes")(given)
            expected = torch.stack(model(pixel_values).semantic(frames))
        assert len(expected.unique()) > 1
        assert (classes != expected).float().mean() < 1e-3


@pytest.mark.long
def test_queries(model: SegmentationModel, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "queries.onnx"
    assert export(folder, file, outputs="queries").agreement == 1
    network = ImagesToOutputs(model, "queries")
    for size in SIZES:
        with torch.no_grad(), use_backend("reference"):
            expected = network(images(*size))
        for ours, truth in zip(run(file, images(*size)), expected, strict=True):
            assert relative_error(torch.from_numpy(ours), truth) < 1e-4


@pytest.mark.long
def test_objects_from_queries_as_written(
    model: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snippet of docs/models.md, against the same in PyTorch."""
    text, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs/models.md").read_text(), re.DOTALL)
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure.get_parameter("class_embed.bias")[2] += 5
    monkeypatch.chdir(tmp_path)
    sure.save_pretrained("model")
    processor = ImageProcessor(96, 640)
    processor.save_pretrained("model")
    info = DatasetInfo(tuple("abcdefg"), frozenset({2}), palette(7), tuple(range(7)))
    Path("model/dataset.json").write_text(info_to_json(info))
    export("model", "mine.onnx", outputs="queries")
    picture = images(1, 15, 20)[0].byte().permute(1, 2, 0).numpy()
    Image.fromarray(picture).resize((200, 150)).save("photo.jpg", quality=95)
    names: dict[str, Any] = {}
    exec(text, names)

    processed = processor("photo.jpg")
    with torch.no_grad():
        outputs = sure(processed["pixel_values"], with_mask_logits=True)
    scores, labels = outputs["class_logits"][-1, 0].softmax(-1).max(-1)
    logits = outputs["mask_logits"][-1].repeat_interleave(4, 2).repeat_interleave(4, 3)
    (height, width), size = processed["image_sizes"][0], processed["original_sizes"][0]
    masks = torch.nn.functional.interpolate(logits[..., :height, :width], size)[0] > 0
    kept = [q for q, label in enumerate(labels.tolist()) if label in info.things]
    assert kept
    for query, (name, score, mask) in zip(kept, names["objects"], strict=True):
        assert name == info.classes[labels[query]]
        assert score == pytest.approx(float(scores[query]), abs=1e-2)
        assert mask.shape == size
        assert (torch.from_numpy(mask) == masks[query]).float().mean() > 0.9


@pytest.mark.long
def test_a_swin_and_a_per_pixel_model_on_the_command_line(tmp_path: Path) -> None:
    swin = BackboneConfig(
        name="swin_tiny_patch4_window7_224",
        options={"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4)},
    )
    for name, config in (
        ("swin", tiny_config(backbone=swin.model_dump())),
        ("pixels", tiny_config(architecture="per_pixel")),
    ):
        build_model(config).save_pretrained(tmp_path / name)
    with pytest.raises(UsageError, match=r"windows of a Swin .* pass --size"):
        export(tmp_path / "swin", tmp_path / "swin.onnx")
    with pytest.raises(UsageError, match="'queries' need a model with masks"):
        export(tmp_path / "pixels", tmp_path / "pixels.onnx", outputs="queries")
    for name, options in (("swin", ["--size", "100x130"]), ("pixels", [])):
        file = tmp_path / f"{name}.onnx"
        result = CliRunner().invoke(app, ["export", str(tmp_path / name), str(file), *options])
        assert result.exit_code == 0, result.output
        assert "ONNX Runtime and PyTorch agree on 100.000 % of the pixels" in result.output
        for batch in (1, 3):
            (classes,) = run(file, images(batch, 100, 130))
            assert classes.shape == (batch, 100, 130)


def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there.onnx"
    there.write_text("mine")
    for target, message in (
        (there, "already exists: choose another file, or pass --overwrite"),
        (tmp_path / "model.pt", "must end in .onnx"),
    ):
        with pytest.raises(OutputError, match=message):
            export(folder, target)
    assert there.read_text() == "mine"
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    mark_run(run_folder)
    with pytest.raises(OutputError, match="run is a training run"):
        export(folder, run_folder / "model.onnx")
    shutil.rmtree(run_folder)
    (tmp_path / "link.onnx").symlink_to(tmp_path / "nothing")
    with pytest.raises(OutputError, match="already exists"):
        export(folder, tmp_path / "link.onnx")
    (tmp_path / "link.onnx").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        export(tmp_path / "none", tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="--size must be at least 32x32"):
        export(folder, tmp_path / "x.onnx", size=(16, 64))
    imported = builtins.__import__

    def without_onnx(name: str, *arguments: Any) -> Any:
        if name == "onnxscript":
            raise ModuleNotFoundError(name=name)
        return imported(name, *arguments)

    def outdated(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError(name="onnxscript._framework_apis.torch_2_11")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without_onnx)
        with pytest.raises(UsageError, match=r"too old \(onnxscript\): pip install"):
            export(folder, tmp_path / "x.onnx")
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    monkeypatch.setattr(torch.onnx, "export", outdated)
    with pytest.raises(UsageError, match=r"too old \(onnxscript\._framework_apis.torch_2_11\)"):
        export(folder, tmp_path / "x.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["there.onnx"]
