"""`maskformer.Predictor`: one object from files to maps."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.recipes import tiny_recipe
from PIL import Image

import maskformer
from maskformer.config.choices import Mode
from maskformer.config.load import merge_model_config, override_config
from maskformer.convert import convert
from maskformer.data import DatasetInfo
from maskformer.data.palette import palette
from maskformer.errors import ConfigError, DatasetError, UsageError
from maskformer.export import export
from maskformer.inference.image_processor import to_tensor
from maskformer.inference.ready import ready_to_predict
from maskformer.modeling.autocast import predict
from maskformer.modeling.outputs import Frames
from maskformer.output.picture_writer import PictureWriter
from maskformer.output.result_writer import ResultWriter
from maskformer.predictor import Predictor

INFO = DatasetInfo(("a", "b", "c"), frozenset({0, 1}), palette(3), (0, 1, 2))
SIZES = ((64, 64), (80, 50), (64, 64), (64, 64), (50, 80))
MODES = ("semantic", "panoptic", "instance")


def build(*overrides: str, **options: object) -> Predictor:
    torch.manual_seed(0)
    every = ("eval.object_mask_threshold=0", "eval.overlap_threshold=0")
    config = override_config(tiny_recipe(), [*every, *overrides])
    model = maskformer.MaskFormer(merge_model_config(config.model, {"num_classes": 3}))
    return Predictor(model, config, INFO, **options)  # type: ignore[arg-type]


def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (*size, 3), np.uint8) for size in SIZES]


def test_images_are_read_when_their_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (events.append(name), function(*given))[1]

    monkeypatch.setattr("maskformer.predictor.to_tensor", noted("read", to_tensor))
    monkeypatch.setattr(Predictor, "predict", noted("predict", Predictor.predict))
    predictor = build("eval.batch_size=2")
    assert len(predictor([images()[0]] * 5)) == 5
    assert events == ["read", "read", "predict"] * 2 + ["read", "predict"]


@pytest.mark.parametrize("mode", MODES)
def test_classes_of_another_model(mode: str) -> None:
    predictor = build()
    info = DatasetInfo(("a", "b"), frozenset({0}), palette(2), (0, 1))
    with pytest.raises(UsageError, match="info has 2 classes, expected 3 as in the model"):
        Predictor(predictor.model, predictor.config, info, mode=mode)  # type: ignore[arg-type]


def test_an_empty_text_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes it for the current folder."""
    processor = build().processor
    model = maskformer.MaskFormer(merge_model_config(tiny_recipe().model, {"num_classes": 3}))
    monkeypatch.chdir(tmp_path)
    model.save_pretrained(".")
    calls: list[tuple[str, Callable[[], object]]] = [
        ("folder", lambda: model.save_pretrained("")),
        ("folder", lambda: processor.save_pretrained("")),
        ("file", lambda: model.load_backbone_weights("")),
        ("path_or_hub_id", lambda: model.load_weights("")),
        ("path_or_hub_id", lambda: maskformer.MaskFormer.from_pretrained("")),
        ("path_or_hub_id", lambda: maskformer.ImageProcessor.from_pretrained("")),
        ("path_or_hub_id", lambda: Predictor.from_pretrained("")),
        ("source", lambda: convert("", "x", "hf")),
        ("target", lambda: convert(".", "", "hf")),
        ("source", lambda: export("", "x.onnx")),
    ]
    for name, call in calls:
        with pytest.raises(UsageError, match=f"{name} must be a path, got an empty text"):
            call()


@pytest.mark.parametrize("mode", MODES)
def test_images_of_any_size_and_kind_give_what_each_gives_alone(tmp_path: Path, mode: str) -> None:
    predictor = build("eval.batch_size=2", mode=mode)
    arrays = images()
    Image.fromarray(arrays[1]).save(tmp_path / "b.png")
    Image.fromarray(arrays[4]).save(tmp_path / "e.png")
    content = (tmp_path / "e.png").read_bytes()
    tensor = torch.from_numpy(arrays[3]).permute(2, 0, 1)
    mixed = [arrays[0], tmp_path / "b.png", Image.fromarray(arrays[2]), tensor, content]
    together = predictor(mixed)
    assert len(together) == len(SIZES)
    for found, array in zip(together, arrays, strict=True):
        [alone] = predictor(array)
        one, other = found.numpy(), alone.numpy()
        assert one.keys() == {{"instance": "instances", "semantic": "classes"}.get(mode, mode)}
        if mode == "semantic":
            assert one["classes"].shape == array.shape[:2]
            assert np.array_equal(one["classes"], other["classes"])
        elif mode == "panoptic":
            assert np.array_equal(one["panoptic"][0], other["panoptic"][0])
            assert one["panoptic"][1]
        else:
            assert np.array_equal(one["instances"]["masks"], other["instances"]["masks"])
            assert one["instances"]["boxes"].shape[1] == 4


def test_bytes_are_read_as_files_are() -> None:
    predictor, form = build(), BytesIO()
    Image.fromarray(images()[0]).save(form, "EPS")
    for content in (b"", b"no image", form.getvalue()):
        with pytest.raises(DatasetError, match="image file given as bytes cannot be read"):
            predictor(content)


@pytest.mark.parametrize("mode", ["panoptic", "instance"])
def test_annotations_and_overlays_are_those_that_are_written(tmp_path: Path, mode: Mode) -> None:
    predictor, image = build(mode=mode), images()[1]
    [prediction] = predictor(image)
    with ResultWriter(tmp_path, INFO) as writer:
        writer.add("x", 7, prediction)
    if mode == "panoptic":
        written = json.loads((tmp_path / "panoptic.json").read_text())
        assert written["categories"] == predictor.categories
        [entry] = written["annotations"]
        expected = entry["segments_info"]
    else:
        written = json.loads((tmp_path / "instances.json").read_text())
        assert {(entry.pop("image_id"), entry.pop("file_name")) for entry in written} == {
            (7, "x.jpg")
        }
        expected = written
    found = predictor.annotations(prediction)
    assert json.loads(json.dumps(found)) == expected
    scores = [entry["score"] for entry in found]
    assert len(predictor.annotations(prediction, min_score=max(scores))) == scores.count(
        max(scores)
    )

    with PictureWriter(tmp_path, INFO, predictor.config) as pictures:
        pictures.write("x", Path("x.jpg"), to_tensor(image, predictor.processor.reader), prediction)
    drawn = predictor.overlay(image, prediction)
    assert np.array_equal(np.array(drawn), np.array(Image.open(tmp_path / "x.png")))


def test_an_empty_text_is_no_image() -> None:
    with pytest.raises(UsageError, match="images must be a path, got an empty text"):
        build()("")


def test_a_map_of_classes_has_no_annotations() -> None:
    predictor = build()
    [prediction] = predictor(images()[0])
    with pytest.raises(UsageError, match="no objects"):
        predictor.annotations(prediction)


def test_threads_may_share_a_predictor() -> None:
    predictor = build(mode="instance")
    alone = [predictor(image)[0].numpy()["instances"] for image in images()]
    with ThreadPoolExecutor(len(SIZES)) as pool:
        together = list(pool.map(predictor, images() * 3))
    for (found,), expected in zip(together, alone * 3, strict=True):
        for name, values in found.numpy()["instances"].items():
            assert np.array_equal(values, expected[name])


def test_batches_hold_images_of_one_size() -> None:
    predictor = build("eval.batch_size=2")
    sizes = []
    predict = predictor.predict

    def spy(prepared):  # type: ignore[no-untyped-def]
        sizes.append([one.sample.size for one in prepared])
        return predict(prepared)

    predictor.predict = spy  # type: ignore[method-assign]
    predictor(images())
    assert sizes == [[(64, 64)] * 2, [(80, 50)], [(64, 64)], [(50, 80)]]


@pytest.mark.parametrize("options", [{"tta": True}, {}])
def test_views_and_tiles(options: dict[str, bool]) -> None:
    overrides = [] if options else ["predict.tile=64"]
    found = build(*overrides, **options)(images()[:2])
    assert [prediction.numpy()["classes"].shape for prediction in found] == list(SIZES[:2])


def test_what_does_not_go_together_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="expected mode 'semantic', got 'panoptic'"):
        build("predict.tile=64", mode="panoptic")
    with pytest.raises(UsageError, match="cannot be combined"):
        build("predict.tile=64", tta=True)
    with pytest.raises(ValueError, match="expected at least one, got none"):
        build()([])


@pytest.mark.parametrize("mode", ["instances", "Semantic", "", 3, ["semantic"]])
def test_what_is_no_mode_is_refused_at_once(mode: object) -> None:
    """Otherwise it would predict nothing."""
    with pytest.raises(UsageError, match="mode must be 'semantic', 'panoptic', 'instance', got"):
        build(mode=mode)


def test_bfloat16_gives_nearly_the_same_in_float32() -> None:
    model = build().model
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = model(image), ready_to_predict(model, "bf16")(image)
    for name, values in expected.items():
        assert found[name].dtype == torch.float32
        assert 0 < float((found[name] - values).norm() / values.norm()) < 0.1
    again = model(image)
    assert all(torch.equal(values, again[name]) for name, values in expected.items())


@pytest.mark.parametrize("backbone", ["resnet18", "vgg11"])
def test_channels_come_last_on_a_cpu(backbone: str) -> None:
    """With and without norms that are folded into convolutions."""
    torch.manual_seed(0)
    part = {"name": backbone, "pretrained": False}
    many = {"queries": 64}  # as many as channels of the features, which so are wanted
    model = maskformer.MaskFormer.from_config(
        "quickstart", num_classes=3, backbone=part, decoder=many
    ).eval()
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected, found = model(image), ready_to_predict(model)(image)
        again = model(image)
    assert found["pixel_features"].is_contiguous(memory_format=torch.channels_last)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5)
        assert torch.equal(again[name], values)


@pytest.mark.parametrize("backbone", ["resnet18", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("channels", [64, 40])
def test_masks_come_without_features_on_a_cpu(backbone: str, channels: int) -> None:
    torch.manual_seed(0)
    part = {"name": backbone, "pretrained": False}
    sizes = {"decoder": {"queries": 35}, "pixel_decoder": {"mask_channels": channels}}
    model = maskformer.MaskFormer.from_config("quickstart", num_classes=3, backbone=part, **sizes)
    image = torch.randn(2, 3, 64, 96)
    frames = Frames((64, 96), [(64, 96), (50, 90)], [(64, 96), (25, 45)])
    with torch.inference_mode():
        expected = model.eval()(image, with_mask_logits=True)
        ready = ready_to_predict(model)
        found, again = ready(image), model(image)
        assert ("pixel_features" in found) == (channels == 40)  # 35 queries save little there
        if channels == 64:
            torch.testing.assert_close(found["mask_logits"][0], expected["mask_logits"][-1])
            assert found["class_logits"].shape[0] == 1
        torch.testing.assert_close(found["class_logits"][-1], expected["class_logits"][-1])
        for ours, plain in zip(found.semantic(frames), expected.semantic(frames), strict=True):
            assert (ours != plain).float().mean() < 1e-3
        views = [outputs.view((64, 96), (64, 96), flipped=True) for outputs in (found, expected)]
    assert torch.equal(again["pixel_features"], expected["pixel_features"])
    assert type(model) is maskformer.MaskFormer
    shared = {id(weight) for weight in ready.parameters()} & {*map(id, model.parameters())}
    assert bool(shared) == ("swin" in backbone)  # where no layout changes, weights are not copied
    assert views[0].pixel_features is views[1].pixel_features is None
    weight = "pixel_decoder.mask_features.weight"
    assert torch.equal(ready.state_dict()[weight], model.state_dict()[weight])


def test_a_model_that_is_ready_can_be_made_ready_again() -> None:
    model = build().model
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for name, values in model(image).items():
            torch.testing.assert_close(ready_to_predict(model)(image)[name], values)


def test_it_reads_runs_and_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = maskformer.MaskFormer.from_config("quickstart", num_classes=3)
    model.save_pretrained(tmp_path)
    predictor = maskformer.Predictor.from_pretrained(
        tmp_path, "data.test_short_side=64", device="cpu"
    )
    assert predictor.mode == "semantic"
    assert predictor.info.num_classes == 3
    [prediction] = predictor(images()[1])
    assert prediction.numpy()["classes"].shape == SIZES[1]


@pytest.mark.parametrize(("count", "things"), [(133, 80), (150, 0)])
def test_published_weights_do_not_say_what_is_a_thing(
    tmp_path: Path, count: int, things: int
) -> None:
    torch.manual_seed(0)
    model = maskformer.MaskFormer.from_config("quickstart", num_classes=count)
    model.class_names = tuple(f"name {index}" for index in range(count))
    model.save_pretrained(tmp_path)

    def load(*overrides: str) -> Predictor:
        return maskformer.Predictor.from_pretrained(tmp_path, *overrides, mode="panoptic")

    assert load().info.things == set(range(things))
    assert load("predict.things=[name 90, name 7]").info.things == {7, 90}
    assert load("predict.things=name 3").info.things == {3}
    assert load("predict.things=[]").info.things == set()
    with pytest.raises(ConfigError, match=r"no class 'nme 7'; did you mean 'name 7'\?"):
        load("predict.things=nme 7")


def test_copies_and_other_processes_predict_the_same() -> None:
    predictor = build("eval.precision=bf16")
    array = images()[0]
    [expected] = predictor(array)
    for copied in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor)):
        [found] = copied(array)
        assert torch.equal(found.classes, expected.classes)
    for parameter in copied.model.parameters():
        parameter.data.zero_()
    assert not copied.model(torch.randn(1, 3, 64, 64))["class_logits"].any()
    [still] = predictor(array)
    assert torch.equal(still.classes, expected.classes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_precision(dtype: torch.dtype) -> None:
    expected = build().model
    model = copy.deepcopy(expected).to(dtype)
    x = torch.randn(1, 3, 64, 64)
    outputs = predict(model, x)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(values.dtype == wanted for values in outputs.values())
    torch.testing.assert_close(
        outputs["class_logits"].float(), expected(x)["class_logits"], rtol=0.1, atol=0.1
    )
