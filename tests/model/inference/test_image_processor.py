"""The authors' test pipeline, against a plain restatement of it with Pillow and NumPy."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.model_cases import tiny_model
from helpers.recipes import TINY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from maskformer import ImageProcessor
from maskformer.config.load import parse_config, to_yaml
from maskformer.data import Normalize
from maskformer.errors import ConfigError, DatasetError
from maskformer.modeling.base import build_model
from mfkernels import use_backend

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain_pipeline(
    image: np.ndarray[Any, Any], short: int, longest: int
) -> tuple[np.ndarray[Any, Any], tuple[int, int]]:
    """As detectron2: shortest edge, Pillow's bilinear, round half up, normalise, pad to 32."""
    height, width = image.shape[:2]
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = scale * new_height, scale * new_width
    h, w = max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)
    resized = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
    values = (resized.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    padded = np.zeros((max(-(-h // 32), 1) * 32, max(-(-w // 32), 1) * 32, 3), np.float32)
    padded[:h, :w] = values
    return padded.transpose(2, 0, 1), (h, w)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    short=st.integers(1, 120),
    longest=st.integers(20, 200),
)
@example(height=20, width=32, short=13, longest=20)  # 12.499999999999998 rows
def test_equals_the_plain_pipeline(height: int, width: int, short: int, longest: int) -> None:
    image = picture(height, width)
    processed = ImageProcessor(short, longest)(image)
    expected, size = plain_pipeline(image, short, longest)
    assert processed["image_sizes"] == [size]
    assert processed["original_sizes"] == [(height, width)]
    torch.testing.assert_close(
        processed["pixel_values"][0], torch.from_numpy(expected), rtol=0, atol=1e-6
    )


def test_camvid(real_data: Path) -> None:
    file = sorted((real_data / "camvid" / "val").iterdir())[0]
    image = np.asarray(Image.open(file).convert("RGB"))
    expected, size = plain_pipeline(image, 512, 2048)
    processed = ImageProcessor()(
        [str(file), Image.open(file), torch.tensor(image).permute(2, 0, 1)]
    )
    assert processed["image_sizes"] == [size] * 3
    for values in processed["pixel_values"]:
        torch.testing.assert_close(values, torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_batches_are_padded_together() -> None:
    images = [picture(40, 100), picture(70, 50, seed=1)]
    processed = ImageProcessor(32, 2048)(images)
    assert processed["pixel_values"].shape == (2, 3, 64, 96)
    assert processed["image_sizes"] == [(32, 80), (45, 32)]
    for values, image in zip(processed["pixel_values"], images, strict=True):
        expected, (height, width) = plain_pipeline(image, 32, 2048)
        found = values[:, :height, :width]
        np.testing.assert_allclose(found, expected[:, :height, :width], rtol=0, atol=1e-6)
        assert not values[:, height:].any()
        assert not values[:, :, width:].any()


def test_sizes_may_stay() -> None:
    image = picture(40, 50)
    processed = ImageProcessor(None)(image)
    assert processed["image_sizes"] == [(40, 50)]
    back = processed["pixel_values"][0, :, :40, :50] * torch.tensor(STD)[:, None, None]
    back += torch.tensor(MEAN)[:, None, None]
    np.testing.assert_allclose(back.permute(1, 2, 0), image, atol=1e-3)


def test_orientation_of_pillow_images(tmp_path: Path) -> None:
    image = Image.fromarray(picture(20, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    processed = ImageProcessor(None)([tmp_path / "turned.png", Image.open(tmp_path / "turned.png")])
    assert processed["original_sizes"] == [(30, 20), (30, 20)]
    assert torch.equal(*processed["pixel_values"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "expected at least one, got none"),
        (np.zeros((4, 4), np.uint8), r"\[H, W, 3\] uint8 RGB, got \[4, 4\] uint8"),
        (np.zeros((4, 4, 3)), r"got \[4, 4, 3\] float64"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"\[3, H, W\] uint8 RGB, got \[4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"got \[0, 4, 3\]"),
    ],
)
def test_what_is_refused(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageProcessor()(images)


@pytest.mark.parametrize("image", [None, 3, object()])
def test_what_is_no_image(image: Any) -> None:
    with pytest.raises(TypeError, match="an array or a tensor, got "):
        ImageProcessor()([image])


def test_arrays_of_any_stride() -> None:
    """As OpenCV's colours are turned round, and as Pillow's pixels are seen by NumPy."""
    image = picture(20, 30)
    expected = ImageProcessor(None)(image)["pixel_values"]
    turned = np.ascontiguousarray(image[:, ::-1, ::-1])[:, ::-1, ::-1]
    fixed = image.copy()
    fixed.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for strided in (turned, fixed, np.asfortranarray(image)):
            assert torch.equal(ImageProcessor(None)(strided)["pixel_values"], expected)


@pytest.mark.parametrize(
    "options",
    [
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [123, 116, 103], "image_std": [58, 57, 57]},
        {"do_rescale": False, "do_normalize": False},
        {"do_rescale": False, "rescale_factor": 0, "image_mean": [9, 9, 9], "image_std": [3, 3, 3]},
    ],
)
def test_values_are_those_of_transformers(options: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MaskFormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 128}, **options
    )
    theirs.save_pretrained(tmp_path)
    image = picture(64, 64)
    expected = theirs(image, return_tensors="pt")["pixel_values"].float()
    found = ImageProcessor.from_pretrained(tmp_path)(image)["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("written", [False, 0, "false", "0", "False"])
def test_flags_as_text(written: Any, tmp_path: Path) -> None:
    """Some programs write flags as numbers or text."""
    values = {"do_rescale": written, "image_mean": [9, 8, 7], "image_std": [3, 2, 1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    normalize = ImageProcessor.from_pretrained(tmp_path).normalize
    assert (normalize.mean, normalize.std) == ((9, 8, 7), (3, 2, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"resample": 3}, "resample 3"), ({"pad_size": {"height": 64, "width": 64}}, "pad_size")],
)
def test_what_this_pipeline_does_not_do(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.MaskFormerImageProcessor(**options).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        ImageProcessor.from_pretrained(tmp_path)


def test_broken_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"x\.png cannot be read"):
        ImageProcessor()(tmp_path / "x.png")


class TestPostProcessing:
    @pytest.mark.parametrize("architecture", ["maskformer", "per_pixel"])
    def test_semantic(self, architecture: str) -> None:
        """Upsample the masks, add up, crop, resize (docs/facts.md, Inference)."""
        model = tiny_model(architecture=architecture)
        processor = ImageProcessor(48, 200)
        processed = processor([picture(30, 40), picture(60, 50, seed=1)])
        with torch.no_grad(), use_backend("reference"):
            outputs = model(processed["pixel_values"])
            maps = processor.post_process_semantic(outputs, processed)
        assert [tuple(labels.shape) for labels in maps] == [(30, 40), (60, 50)]
        size = processed["pixel_values"].shape[-2:]
        if architecture == "per_pixel":
            scores = F.interpolate(outputs["pixel_logits"][-1], size=size, mode="bilinear")
        else:
            masks = torch.einsum(
                "bqc,bchw->bqhw", outputs["mask_embed"][-1], outputs["pixel_features"]
            )
            masks = F.interpolate(masks, size=size, mode="bilinear").sigmoid()
            classes = outputs["class_logits"][-1].softmax(-1)[..., :-1]
            scores = torch.einsum("bqk,bqhw->bkhw", classes, masks)
        for score, (h, w), original, labels in zip(
            scores, processed["image_sizes"], processed["original_sizes"], maps, strict=True
        ):
            full = F.interpolate(score[None, :, :h, :w], size=original, mode="bilinear")[0]
            assert (full.argmax(0) == labels).float().mean() > 0.999

    def test_semantic_maps_of_panoptic_models(self) -> None:
        """Masks are cropped and resized as logits, then added up, as a panoptic recipe asks."""
        recipe = parse_config({**TINY, "eval": {"resize_logits": True}})
        assert ImageProcessor.from_config(recipe).resize_logits
        processor = ImageProcessor(48, 200, resize_logits=True)
        processed = processor(picture(90, 121))
        random = torch.Generator().manual_seed(0)
        height, width = processed["pixel_values"].shape[-2:]
        outputs = {
            "class_logits": 2 * torch.randn(1, 1, 9, 8, generator=random),
            "mask_embed": 2 * torch.randn(1, 1, 9, 6, generator=random),
            "pixel_features": torch.randn(1, 6, height // 4, width // 4, generator=random),
        }
        with use_backend("reference"):
            [found] = processor.post_process_semantic(outputs, processed)
            [other] = replace(processor, resize_logits=False).post_process_semantic(
                outputs, processed
            )
        [(h, w)] = processed["image_sizes"]
        masks = torch.einsum("bqc,bchw->bqhw", outputs["mask_embed"][-1], outputs["pixel_features"])
        masks = F.interpolate(masks, size=(height, width), mode="bilinear")[..., :h, :w]
        masks = F.interpolate(masks, size=(90, 121), mode="bilinear").sigmoid()
        classes = outputs["class_logits"][-1].softmax(-1)[..., :-1]
        expected = torch.einsum("bqk,bqhw->bkhw", classes, masks)[0].argmax(0)
        assert (found == expected).float().mean() > 0.999
        assert not torch.equal(found, other)

    def test_panoptic(self) -> None:
        model = tiny_model()
        processor = ImageProcessor(48, 200)
        processed = processor(picture(30, 40))
        with torch.no_grad(), use_backend("reference"):
            outputs = model(processed["pixel_values"])
            [(segments, info)] = processor.post_process_panoptic(
                outputs, processed, [0, 1], object_mask_threshold=0.0, overlap_threshold=0.0
            )
            [(nothing, none)] = processor.post_process_panoptic(
                outputs, processed, [0, 1], object_mask_threshold=1.0
            )
        assert segments.shape == (30, 40)
        assert set(segments.unique().tolist()) - {0} <= {segment["id"] for segment in info}
        assert not nothing.any()
        assert none == []


class TestFolders:
    processor = ImageProcessor(640, 2560, Normalize((1.0, 2.0, 3.0), (4.0, 5.0, 6.5), 64))

    def test_round_trip(self, tmp_path: Path) -> None:
        self.processor.save_pretrained(tmp_path / "new")
        assert ImageProcessor.from_pretrained(tmp_path / "new") == self.processor
        unresized = ImageProcessor(None, None, resize_logits=True)
        unresized.save_pretrained(tmp_path)
        assert ImageProcessor.from_pretrained(tmp_path) == unresized

    def test_transformers_reads_it(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        self.processor.save_pretrained(tmp_path)
        theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
        assert type(theirs).__name__.startswith("MaskFormerImageProcessor")
        assert (theirs.size["shortest_edge"], theirs.size["longest_edge"]) == (640, 2560)
        assert theirs.size_divisor == 64
        np.testing.assert_allclose(np.array(theirs.image_std) * 255, [4.0, 5.0, 6.5], rtol=1e-6)
        # Sides that are multiples of the divisor already leave nothing to stretch.
        processor = ImageProcessor(64, 256)
        processor.save_pretrained(tmp_path)
        image = picture(64, 96)
        theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
        expected = theirs(images=image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(processor(image)["pixel_values"], expected, rtol=0, atol=1e-4)

    def test_run_folder(self, tmp_path: Path) -> None:
        recipe = parse_config(
            {**TINY, "data": {**TINY["data"], "test_short_side": 72, "test_max_side": 80}}
        )
        (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
        found = ImageProcessor.from_pretrained(tmp_path)
        assert (found.short_side, found.max_side) == (72, 80)
        assert found == ImageProcessor.from_config(recipe)

    def test_models_that_say_little(self, tmp_path: Path) -> None:
        model = tiny_model(pixel_mean=(1.0, 2.0, 3.0), size_divisibility=64)
        build_model(model.config).save_pretrained(tmp_path / "ours")
        found = ImageProcessor.from_pretrained(tmp_path / "ours")
        assert found == ImageProcessor(normalize=Normalize((1.0, 2.0, 3.0), STD, 64))
        (tmp_path / "config.json").write_text('{"model_type": "maskformer"}')
        assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor()
        (tmp_path / "model.pkl").write_bytes(b"")
        assert ImageProcessor.from_pretrained(tmp_path / "model.pkl") == ImageProcessor()

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ({}, (800, 1333)),
            ({"size": 512, "max_size": 2048}, (512, 2048)),
            ({"size": {"shortest_edge": 640, "longest_edge": 2560}}, (640, 2560)),
            ({"size": {"height": 9, "width": 9}, "do_resize": False}, (None, None)),
        ],
    )
    def test_what_transformers_wrote(
        self, values: dict[str, Any], expected: tuple[int | None, int | None], tmp_path: Path
    ) -> None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        found = ImageProcessor.from_pretrained(tmp_path)
        assert (found.short_side, found.max_side) == expected

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="holds no checkpoint: expected"):
            ImageProcessor.from_pretrained(tmp_path)
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(ValueError, match=r"notes\.txt is a file; give the folder"):
            ImageProcessor.from_pretrained(tmp_path / "notes.txt")

    def test_fixed_size(self, tmp_path: Path) -> None:
        values = {"size": {"height": 512, "width": 512}}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match="keeps the aspect ratio and needs 'shortest_edge'"):
            ImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_opened_image_without_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(DatasetError, match=f"image file given has {size[0]}x{size[1]} pixels"):
        ImageProcessor()(Image.new("RGB", size))
