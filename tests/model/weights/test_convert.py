"""`maskformer convert`, and models from elsewhere in the other commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from helpers.model_cases import tiny_model
from helpers.official.checkpoints import Official, write_zoo
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from maskformer import ImageProcessor, MaskFormer, Predictor
from maskformer.cli import app, main
from maskformer.data import DatasetInfo
from maskformer.data.palette import palette
from maskformer.errors import CheckpointError, OutputError
from maskformer.training.checkpoints.contents import DATASET, resolve_checkpoint
from maskformer.training.checkpoints.writing import info_to_json
from maskformer.training.run_folder import mark_run

OFFICIAL = Official(swin=True, channels=(16, 32, 64, 128), heads=(1, 2, 2, 4))


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return write_zoo(tmp_path / "official.pkl", OFFICIAL.state(zoo=True))


def test_around_all_formats(official: Path, tmp_path: Path) -> None:
    output = run("convert", official, tmp_path / "hf", "--to", "hf")
    assert "parameters" in output
    run("convert", tmp_path / "hf", tmp_path / "native", "--to", "native")
    run("convert", tmp_path / "native", tmp_path / "again.pkl", "--to", "official")
    run("convert", tmp_path / "again.pkl", tmp_path / "hf2", "--to", "hf")
    first = load_file(tmp_path / "hf" / "model.safetensors")
    last = load_file(tmp_path / "hf2" / "model.safetensors")
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    expected = MaskFormer.from_pretrained(official).state_dict()
    native = MaskFormer.from_pretrained(tmp_path / "native").state_dict()
    assert all(torch.equal(native[name], value) for name, value in expected.items())


def test_transformers_reads_it(official: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run("convert", official, tmp_path, "--to", "hf")
    theirs = transformers.MaskFormerForInstanceSegmentation.from_pretrained(tmp_path).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.size["shortest_edge"] == 512
    ours = MaskFormer.from_pretrained(official)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, outputs = theirs(x), ours(x)
    torch.testing.assert_close(
        outputs["class_logits"][-1], expected.class_queries_logits, rtol=1e-4, atol=1e-4
    )


def test_class_names_of_a_run(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    model = tiny_model(backbone={"name": "resnet18"}, pixel_decoder={"groups": 32})
    model.save_pretrained(run_folder)
    names = tuple("abcdefg")
    info = DatasetInfo(names, frozenset({1}), palette(7), tuple(range(7)))
    (run_folder / DATASET).write_text(info_to_json(info))
    run("convert", run_folder, tmp_path / "hf", "--to", "hf")
    labels = json.loads((tmp_path / "hf" / "config.json").read_text())["id2label"]
    assert tuple(labels[str(index)] for index in range(7)) == names


def test_things_of_a_run_stay_in_the_native_format(official: Path, tmp_path: Path) -> None:
    model = tiny_model(num_classes=7)
    model.save_pretrained(tmp_path / "run")
    info = DatasetInfo(tuple("abcdefg"), frozenset({1}), palette(9)[2:], tuple(range(10, 17)))
    (tmp_path / "run" / DATASET).write_text(info_to_json(info))
    target = tmp_path / "native"
    run("convert", tmp_path / "run", target, "--to", "native")
    assert Predictor.from_pretrained(target, mode="panoptic").info == info
    run("convert", target, tmp_path / "again", "--to", "native")
    assert Predictor.from_pretrained(tmp_path / "again").info == info
    run("convert", official, target, "--to", "native", "--overwrite")
    assert not Predictor.from_pretrained(target).info.things


@pytest.mark.parametrize("best", [True, False])
def test_a_run_stands_for_its_best_checkpoint(tmp_path: Path, best: bool) -> None:
    steps = tmp_path / "run" / "checkpoints"
    model = tiny_model(backbone={"name": "resnet18"}, pixel_decoder={"groups": 32})
    weight = next(model.parameters())
    for step, link in ((2, "best"), (4, "last")):
        with torch.no_grad():
            weight.fill_(step)
        model.save_pretrained(steps / f"step_{step:07d}")
        ImageProcessor(32 * step, None).save_pretrained(steps / f"step_{step:07d}")
        (steps / f"step_{step:07d}" / "training_state.pt").touch()
        if best or link == "last":
            (steps / link).symlink_to(f"step_{step:07d}")
    expected = 2 if best else 4
    for path in (tmp_path / "run", steps):
        found = MaskFormer.from_pretrained(path)
        assert next(found.parameters()).eq(expected).all()
        assert ImageProcessor.from_pretrained(path).short_side == 32 * expected
        assert resolve_checkpoint(path) == (steps / f"step_{expected:07d}").resolve()
    run("convert", tmp_path / "run", tmp_path / "native", "--to", "native")
    converted = MaskFormer.from_pretrained(tmp_path / "native")
    assert next(converted.parameters()).eq(expected).all()
    assert ImageProcessor.from_pretrained(tmp_path / "native").short_side == 32 * expected


def test_an_official_folder_is_read_back(official: Path, tmp_path: Path) -> None:
    model = MaskFormer.from_pretrained(official)
    model.save_pretrained(tmp_path / "folder", format="official")
    again = MaskFormer.from_pretrained(tmp_path / "folder").state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    assert ImageProcessor.from_pretrained(tmp_path / "folder") == ImageProcessor()
    (tmp_path / "folder" / "other.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"folder holds no config\.json"):
        MaskFormer.from_pretrained(tmp_path / "folder")


def test_refusals(official: Path, tmp_path: Path) -> None:
    write_zoo(official, replace(OFFICIAL, head="per_pixel").state(zoo=True))
    with pytest.raises(ValueError, match="cannot express this model: its architecture"):
        run("convert", official, tmp_path / "hf", "--to", "hf")
    assert not (tmp_path / "hf").exists()
    with pytest.raises(NotADirectoryError, match="is a file"):
        run("convert", official, official / "x", "--to", "native")


@pytest.mark.parametrize(
    ("form", "taken"),
    [
        ("native", "config.json"),
        ("native", "model.safetensors"),
        ("hf", "preprocessor_config.json"),
        ("official", "model_final.pkl"),
    ],
)
def test_another_model_is_not_replaced(
    official: Path, tmp_path: Path, form: str, taken: str
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / taken).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{taken} already exists: .* with --overwrite"):
        run("convert", official, target, "--to", form)
    assert [(file.name, file.read_text()) for file in target.iterdir()] == [(taken, "mine")]
    run("convert", official, target, "--to", form, "--overwrite")
    MaskFormer.from_pretrained(target)
    other = write_zoo(tmp_path / "other.pkl", OFFICIAL.state(zoo=True))
    before = other.read_bytes()
    with pytest.raises(FileExistsError, match=r"other\.pkl already exists"):
        run("convert", target, other, "--to", "official")
    assert other.read_bytes() == before


def test_what_is_in_the_way_is_said_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("maskformer.weights.open._download", lambda _: pytest.fail("fetched"))
    (tmp_path / "model_final.pkl").write_text("mine")
    with pytest.raises(FileExistsError, match="already exists: choose another target"):
        run("convert", "owner/name", tmp_path, "--to", "official")
    mark_run(tmp_path)
    for target, form in (
        (tmp_path, "native"),
        (tmp_path, "official"),
        (tmp_path / "a.pkl", "official"),
    ):
        with pytest.raises(OutputError, match="is a training run"):
            run("convert", "owner/name", target, "--to", form, "--overwrite")


def test_unreachable_hub_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    command = ["maskformer", "convert", "someone/model", str(tmp_path / "x"), "--to", "hf"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err == (
        "error: 'someone/model' is not a local folder, and downloading it from the Hugging Face "
        "hub failed: name or service not known\n"
    )


class TestPrediction:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        return tmp_path / "image.png"

    def test_official_file(self, official: Path, image: Path, tmp_path: Path) -> None:
        run("predict", image, "--checkpoint", official, "--out", tmp_path / "out")
        processor, model = ImageProcessor(), MaskFormer.from_pretrained(official)
        processed = processor(image)
        with torch.no_grad():
            [expected] = processor.post_process_semantic(
                model(processed["pixel_values"]), processed
            )
        found = np.asarray(Image.open(tmp_path / "out" / "classes" / "image.png"))
        assert (found == expected.numpy()).mean() > 0.999

    def test_folder_with_its_own_sizes(self, official: Path, image: Path, tmp_path: Path) -> None:
        model = MaskFormer.from_pretrained(official)
        model.class_names = tuple("abcdefg")
        model.save_pretrained(tmp_path / "hf", format="hf")
        processor = ImageProcessor(64, 128)
        processor.save_pretrained(tmp_path / "hf")
        run("predict", image, "--checkpoint", tmp_path / "hf", "--out", tmp_path / "out")
        processed = processor(image)
        with torch.no_grad():
            [expected] = processor.post_process_semantic(
                model(processed["pixel_values"]), processed
            )
        found = np.asarray(Image.open(tmp_path / "out" / "classes" / "image.png"))
        assert (found == expected.numpy()).mean() > 0.999

    def test_nothing_there(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("")
        for path in (tmp_path, tmp_path / "none.pkl", tmp_path / "notes.txt"):
            with pytest.raises(CheckpointError, match="no checkpoint at"):
                resolve_checkpoint(path)


def test_what_transformers_trains_with_stays(official: Path, tmp_path: Path) -> None:
    run("convert", official, tmp_path / "hf", "--to", "hf")
    given = {"mask_weight": 5.0, "cross_entropy_weight": 2.0, "use_auxiliary_loss": True}
    of_labels = {"do_reduce_labels": True, "ignore_index": 255}
    for name, values in (("config.json", given), ("preprocessor_config.json", of_labels)):
        file = tmp_path / "hf" / name
        written = json.loads(file.read_text()) | values
        if name == "config.json":
            written["decoder_config"]["attention_dropout"] = 0.25
        file.write_text(json.dumps(written))
    run("convert", tmp_path / "hf", tmp_path / "again", "--to", "hf")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: config[name] for name in given} == given
    assert config["decoder_config"]["attention_dropout"] == 0.25
    preprocessor = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert {name: preprocessor[name] for name in of_labels} == of_labels
