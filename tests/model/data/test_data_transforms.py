"""Augmentation: sizes, geometry that image and labels share, repeatable by the seed."""

from __future__ import annotations

import colorsys
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from maskformer.config.load import load_config
from maskformer.config.schema import PanopticAugmentation, SemanticAugmentation
from maskformer.data import EvalTransform, Sample, TrainTransform
from maskformer.data.color_jitter import (
    distort_color,
    from_hsv,
    scale_levels,
    scale_saturation,
    shift_hue,
    to_hsv,
)
from maskformer.data.transforms import PAD_VALUE, resize_image, resize_segments, resized_size

PLAIN = {"short_sides": (20,), "color": False, "flip": False}


def make(height=20, width=30, classes=(0, 1, 2, 3), crowd=()):
    """A sample whose image tells the segment of each pixel: quarters, the last one void."""
    segments = torch.zeros(height, width, dtype=torch.int32)
    segments[: height // 2, width // 2 :] = 1
    segments[height // 2 :, : width // 2] = 2
    segments[height // 2 :, width // 2 :] = -1
    labels = torch.tensor(classes[:3])
    image = (40 * (segments + 2)).to(torch.uint8).expand(3, -1, -1).clone()
    flags = torch.tensor([k in crowd for k in range(3)])
    return Sample(image, segments, labels, flags, "x")


def same(a, b):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("image", "segments", "labels", "crowd")
    )


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((480, 640), 512, 2048, (512, 683)),  # 682.67
        ((640, 480), 512, 2048, (683, 512)),
        ((100, 1000), 512, 2048, (205, 2048)),  # the long side decides
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 300), 301, None, (301, 301)),
        ((2, 5), 1, None, (1, 3)),  # 2.5 rounds up
        ((1, 1000), 4, 10, (1, 10)),  # never 0
    ],
)
def test_size_rule(size, short, long, expected):
    assert resized_size(size, short, long) == expected


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(1, 600))
def test_size_rule_keeps_its_bounds(height, width, short, long):
    size = resized_size((height, width), short, long)
    assert max(size) <= long
    assert min(size) <= short
    assert min(size) == short or max(size) == long


@pytest.mark.parametrize("size", [(13, 17), (40, 60), (90, 41)])
def test_resizing_is_that_of_pillow(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    expected = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    resized = resize_image(torch.from_numpy(image).permute(2, 0, 1), size)
    difference = np.abs(resized.permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() <= 1
    labels = rng.integers(-1, 70_000, (37, 53), dtype=np.int32)
    expected = np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
    resized = resize_segments(torch.from_numpy(labels), size, "center")
    assert np.array_equal(resized.numpy(), expected)


@pytest.mark.parametrize("size", [(13, 17), (40, 60), (90, 41), (37, 53), (371, 211)])
def test_labels_take_the_upper_left_corner(size):
    """Officially `F.interpolate(mode="nearest")` on doubles: floor(i * old / new)."""
    labels = torch.randint(-1, 70_000, (37, 53), dtype=torch.int32)
    resized = resize_segments(labels, size, "floor")
    assert resized.dtype == torch.int32
    expected = F.interpolate(labels[None, None].double(), size, mode="nearest")[0, 0]
    assert torch.equal(resized, expected.int())


def test_where_the_two_labels_differ():
    """Of 4 columns 3 are made: corners 0, 1.33, 2.67 and centres 0.67, 2, 3.33."""
    labels = torch.tensor([[10, 11, 12, 13]], dtype=torch.int32)
    assert resize_segments(labels, (1, 3), "floor").tolist() == [[10, 11, 12]]
    assert resize_segments(labels, (1, 3), "center").tolist() == [[10, 12, 13]]


def test_each_recipe_resizes_labels_as_its_mapper():
    ways = {
        name: load_config(name).data.augmentation.label_resize
        for name in ("ade20k/r50", "ade20k_panoptic/r50_6enc", "coco_panoptic/swin_t")
    }
    assert list(ways.values()) == ["floor", "center", "center"]
    sample = make(4, 8)
    floor, center = (
        TrainTransform(
            SemanticAugmentation(
                short_sides=(3,), crop=(3, 6), color=False, flip=False, label_resize=way
            )
        )(sample, 0)
        for way in ("floor", "center")
    )
    assert torch.equal(floor.image, center.image)
    assert not torch.equal(floor.semantic_map(), center.semantic_map())


def test_eval_transform():
    image = make(20, 30).image
    assert EvalTransform(40, 50)(image).shape == (3, 33, 50)
    assert EvalTransform(None)(image) is image


def test_image_and_segments_move_together():
    """The image's grey value names the segment, whatever crop, flip and padding did."""
    transform = TrainTransform(SemanticAugmentation(short_sides=(20,), color=False, crop=(18, 40)))
    for seed in range(20):
        sample = transform(make(), seed)
        assert sample.size == (18, 40)
        inside = sample.image[0] != PAD_VALUE
        assert inside.sum() == 18 * 30
        assert (sample.segments[~inside] == -1).all()
        expected = torch.where(sample.segments < 0, -1, sample.labels[sample.segments.clamp(min=0)])
        assert torch.equal(sample.image[0][inside].int(), 40 * (expected[inside].int() + 2))


def test_padding_can_be_left_out():
    transform = TrainTransform(SemanticAugmentation(**PLAIN, crop=(18, 40), pad_to_crop=False))
    assert transform(make(), 0).size == (18, 30)


def test_short_sides_all_occur():
    config = SemanticAugmentation(
        short_sides=(10, 20, 40), max_side=50, crop=(99, 99), pad_to_crop=False
    )
    sizes = {TrainTransform(config)(make(), seed).size for seed in range(40)}
    assert sizes == {(10, 15), (20, 30), (33, 50)}


def test_flip_happens_half_of_the_time():
    transform = TrainTransform(SemanticAugmentation(**PLAIN | {"flip": True}, crop=(20, 30)))
    flipped = sum(bool(transform(make(), seed).segments[0, 0] == 1) for seed in range(400))
    assert 160 < flipped < 240


@pytest.mark.parametrize(
    "config",
    [
        SemanticAugmentation(crop=(48, 64), short_sides=(40, 60, 80)),
        PanopticAugmentation(short_sides=(40, 60), crop_range=(16, 24)),
    ],
)
def test_the_seed_decides_everything(config):
    transform = TrainTransform(config)
    sample = make(40, 60)
    before = sample.image.clone()
    torch.manual_seed(1), random.seed(1)
    first = [transform(sample, seed) for seed in range(6)]
    torch.manual_seed(2), random.seed(2)
    state = torch.get_rng_state(), random.getstate()
    second = [transform(sample, seed) for seed in range(6)]
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not all(same(first[0], other) for other in first[1:])
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()
    assert torch.equal(sample.image, before)


def test_cropped_away_segments():
    drop = TrainTransform(SemanticAugmentation(**PLAIN, crop=(4, 4)))
    keep = TrainTransform(SemanticAugmentation(**PLAIN, crop=(4, 4), keep_empty=True))
    counts = set()
    for seed in range(30):
        dropped, kept = drop(make(), seed), keep(make(), seed)
        assert torch.equal(dropped.image, kept.image)
        assert kept.labels.tolist() == [0, 1, 2]
        assert torch.equal(dropped.semantic_map(), kept.semantic_map())
        assert dropped.segments.unique()[dropped.segments.unique() >= 0].tolist() == list(
            range(len(dropped.labels))
        )
        counts.add(len(dropped.labels))
    assert {0, 1, 2} <= counts  # void alone is a legal crop


@pytest.mark.parametrize(
    "config", [SemanticAugmentation(**PLAIN, crop=(20, 30)), PanopticAugmentation()]
)
def test_crowds_become_void(config):
    sample = TrainTransform(config)(make(crowd=(1,)), 3)
    assert sample.labels.tolist() == [0, 2]
    assert not sample.crowd.any()
    assert sample.segments.max() == 1


def test_one_class_may_not_fill_the_crop():
    """With four quarters, a crop of mostly one class is drawn again; void does not count."""
    config = SemanticAugmentation(**PLAIN, crop=(8, 8), single_category_max_area=0.75)
    shares, plain = [], []
    for setting, into in (
        (config, shares),
        (config.model_copy(update={"single_category_max_area": 1.0}), plain),
    ):
        for seed in range(60):
            classes = TrainTransform(setting)(make(), seed).semantic_map()
            counts = classes[classes >= 0].bincount()
            into.append(1.0 if len(counts) == 0 else float(counts.max() / counts.sum()))
    assert sum(share < 0.75 for share in shares) > 55 > sum(share < 0.75 for share in plain)


def test_same_class_twice_is_one_category():
    config = SemanticAugmentation(**PLAIN, crop=(19, 29), single_category_max_area=0.9)
    sample = TrainTransform(config)(make(classes=(5, 5, 5)), 0)  # never accepted, yet it ends
    assert sample.size == (19, 29)


def test_panoptic_sizes():
    config = PanopticAugmentation()
    sizes = [TrainTransform(config)(make(427, 640), seed).size for seed in range(40)]
    assert all(min(size) in range(480, 801, 32) or max(size) == 1333 for size in sizes)
    # Without a crop the shape stays that of the image; with one it rarely does.
    plain = sum(abs(width / height - 640 / 427) < 0.01 for height, width in sizes)
    assert 10 < plain < 30


def test_panoptic_crop_of_a_small_image():
    config = PanopticAugmentation(short_sides=(12,), crop_short_sides=(8,), crop_range=(16, 24))
    sizes = {TrainTransform(config)(make(10, 40), seed).size for seed in range(20)}
    assert (12, 48) in sizes
    assert all(size[0] == 12 for size in sizes)


def pixel(*rgb):
    return torch.tensor(rgb, dtype=torch.uint8)[:, None, None]


@pytest.mark.parametrize(
    ("rgb", "hsv"),
    [
        # V = max, S = 255 (V - min) / V, H = 30 (G - B) / (V - min), from G on 60, from B on 120
        ((255, 0, 0), (0, 255, 255)),
        ((0, 255, 0), (60, 255, 255)),
        ((0, 0, 255), (120, 255, 255)),
        ((200, 100, 50), (10, 191, 200)),  # S 191.25, H 10
        ((50, 100, 200), (110, 191, 200)),  # H 120 - 30 * 50 / 150
        ((200, 50, 100), (170, 191, 200)),  # H -10: from the other end of the circle
        ((200, 199, 199), (0, 1, 200)),
        ((7, 7, 7), (0, 0, 7)),
        ((0, 0, 0), (0, 0, 0)),
        ((100, 20, 30), (176, 204, 100)),  # H -3.75, rounded
    ],
)
def test_eight_bits_of_hue_saturation_and_value(rgb, hsv):
    assert tuple(int(part) for part in to_hsv(pixel(*rgb))) == hsv


@settings(max_examples=200)
@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_hsv_is_rounded_to_eight_bits(rgb):
    hue, saturation, value = to_hsv(pixel(*rgb))
    exact = colorsys.rgb_to_hsv(*(c / 255 for c in rgb))
    assert int(value) == max(rgb)
    assert abs(int(saturation) - 255 * exact[1]) < 0.6
    distance = abs(int(hue) - 180 * exact[0])
    assert min(distance, 180 - distance) < 0.6
    assert 0 <= int(hue) < 180
    expected = colorsys.hsv_to_rgb(int(hue) / 180, int(saturation) / 255, int(value) / 255)
    back = from_hsv(hue, saturation, value).flatten().numpy()
    assert np.abs(back - 255 * np.array(expected)).max() < 0.51


def test_levels_are_truncated():
    """Of 0..255 times 1.5 every odd one loses half a level; rounding would make them brighter."""
    levels = torch.arange(256, dtype=torch.uint8)
    assert scale_levels(levels, 1.5).tolist() == [min(3 * level // 2, 255) for level in range(256)]
    assert scale_levels(levels[:4], offset=-1.25).tolist() == [0, 0, 0, 1]
    assert scale_levels(levels[:4], offset=0.75).tolist() == [0, 1, 2, 3]


def test_saturation_and_hue_of_a_pixel():
    """(200, 100, 50) is H 10, S 191, V 200. S becomes 114 (114.6): 200 (1 - 114/255 x), x = 1 for
    blue, 1 - 10/30 for green. H 10 - 15 is 175: red stays the largest, now blue leads green.
    """
    assert scale_saturation(pixel(200, 100, 50), 0.6).flatten().tolist() == [200, 140, 111]
    assert scale_saturation(pixel(200, 100, 50), 1.5).flatten().tolist() == [200, 67, 0]
    assert shift_hue(pixel(200, 100, 50), -15).flatten().tolist() == [200, 50, 75]
    assert shift_hue(pixel(9, 9, 9), 7).flatten().tolist() == [9, 9, 9]


def test_color_changes_the_image_only():
    config = SemanticAugmentation(**PLAIN | {"color": True}, crop=(20, 30))
    plain, samples = make(), [TrainTransform(config)(make(), seed) for seed in range(20)]
    assert all(torch.equal(sample.segments, plain.segments) for sample in samples)
    assert sum(torch.equal(sample.image, plain.image) for sample in samples) < 10


def test_color_distortion_stays_within_its_ranges():
    gray = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    values = [float(distort_color(gray, random.Random(seed)).float().mean()) for seed in range(300)]
    assert min(values) >= (100 - 32) * 0.5 - 1
    assert max(values) <= (100 + 32) * 1.5 + 1
    assert max(values) - min(values) > 60
    # Each of brightness and contrast is left alone half of the time; grey has no saturation or hue.
    assert 45 < sum(value == 100 for value in values) < 105
