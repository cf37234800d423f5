"""Colours, overlays and legends."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from helpers.coco_format import ground_truth_as_panoptic
from helpers.recipes import tiny_recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskformer.config.schema import ShapesConfig
from maskformer.data import DatasetInfo, Shapes
from maskformer.data.palette import palette
from maskformer.inference.segmentation import Segmentation
from maskformer.output import fonts, legend, pictures
from maskformer.output.confusion_picture import draw_confusion
from maskformer.output.legend import VOID
from maskformer.output.picture_writer import PictureWriter
from maskformer.output.pictures import (
    OUTLINE,
    PANEL_SIDE,
    overlay,
    overlay_with_legend,
    save_picture,
    segment_colors,
    side_by_side,
)

INFO = DatasetInfo(
    ("car", "road", "sky"), frozenset({0}), ((200, 0, 0), (0, 200, 0), (0, 0, 200)), (1, 2, 3)
)


REST = ("things", "colors", "category_ids")


def has_color(picture, color):
    return bool((picture == torch.tensor(color, dtype=torch.uint8)[:, None, None]).all(0).any())


def test_palette_is_stable_and_distinct():
    colors = palette(1000)
    assert palette(150) == colors[:150]
    assert palette(0) == ()
    assert len(set(colors)) == 1000
    nearest = min(
        sum(abs(x - y) for x, y in zip(a, b, strict=True))
        for a, b in itertools.combinations(palette(40), 2)
    )
    assert nearest > 40
    assert all(0 <= channel <= 255 for color in colors for channel in color)


def test_things_of_a_class_differ_and_stuff_does_not():
    colors = segment_colors([0, 0, 1, 1, 0], INFO)
    assert colors[0] == (200, 0, 0)
    assert len({colors[0], colors[1], colors[4]}) == 3
    assert colors[2] == colors[3] == (0, 200, 0)


def test_overlay_by_hand():
    image = torch.full((3, 4, 6), 100, dtype=torch.uint8)
    segments = torch.tensor([[0, 0, 0, -1, -1, -1]]).expand(4, 6)
    picture = overlay(image, Segmentation(segments, torch.tensor([1])), INFO, opacity=0.5)
    assert picture.dtype == torch.uint8
    assert picture.shape == image.shape
    assert picture[:, 1, 0].tolist() == [50, 150, 50]
    assert picture[:, 1, 2].tolist() == list(OUTLINE)
    assert picture[:, 1, 4].tolist() == [30, 30, 30]
    assert image.unique().tolist() == [100]


def test_nothing_to_draw():
    image = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    nothing = Segmentation(torch.full((8, 8), -1), torch.zeros(0, dtype=torch.int64))
    assert overlay(image, nothing, INFO).unique().tolist() == [30]
    assert side_by_side(image, nothing, nothing, INFO).shape[0] == 3


def test_the_three_sources_agree():
    sample = Shapes(ShapesConfig(), "val")[4]
    info = Shapes.info
    truth = Segmentation.from_sample(sample)
    again = Segmentation.from_panoptic(*ground_truth_as_panoptic(sample))
    assert not sample.crowd.any()
    assert torch.equal(overlay(sample.image, truth, info), overlay(sample.image, again, info))
    semantic = Segmentation.from_semantic(sample.semantic_map())
    assert semantic.labels.tolist() == sorted(set(sample.labels.tolist()))
    assert torch.equal(
        torch.where(semantic.segments >= 0, semantic.labels[semantic.segments.clamp(min=0)], -1),
        sample.semantic_map(),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900))
def test_panels_are_neither_tiny_nor_huge(height, width):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    label_map = Segmentation.from_semantic(torch.ones(height, width, dtype=torch.int64))
    picture = side_by_side(image, label_map, label_map, INFO)
    low, high = PANEL_SIDE
    assert min(height, width) == 1 or low <= max(picture.shape[1], picture.shape[2] // 3)
    assert picture.shape[1] < high + 200
    assert picture.shape[2] < 3 * high + 100


def test_without_ground_truth_there_are_two_panels():
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    drawn = Segmentation.from_semantic(torch.ones(400, 400, dtype=torch.int64))
    two = side_by_side(image, None, drawn, INFO)
    three = side_by_side(image, drawn, drawn, INFO)
    assert three.shape[2] - two.shape[2] == 412


def test_legend_names_what_is_drawn():
    image = torch.full((3, 400, 400), 128, dtype=torch.uint8)
    label_map = torch.zeros(400, 400, dtype=torch.int64)
    label_map[:200] = 2
    picture = overlay_with_legend(image, Segmentation.from_semantic(label_map), INFO)
    legend = picture[:, 400:]
    assert picture.shape[2] == 400
    assert has_color(legend, (200, 0, 0))
    assert has_color(legend, (0, 0, 200))
    assert not has_color(legend, (0, 200, 0))


def test_long_legends_wrap_and_end():
    names = tuple(f"a rather long name {k}" for k in range(150))
    info = DatasetInfo(names, frozenset(), palette(150), tuple(range(150)))
    label_map = (torch.arange(400 * 400) % 150).reshape(400, 400)
    heights = [
        overlay_with_legend(
            torch.zeros(3, 400, 400, dtype=torch.uint8), Segmentation.from_semantic(classes), info
        ).shape[1]
        for classes in (label_map % 2, label_map % 8, label_map)
    ]
    assert heights[0] < heights[1] < heights[2] < 600


def test_small_pictures_are_enlarged_and_large_ones_keep_their_size():
    drawn = Segmentation.from_semantic(torch.zeros(20, 30, dtype=torch.int64))
    picture = overlay_with_legend(torch.zeros(3, 20, 30, dtype=torch.uint8), drawn, INFO)
    assert picture.shape[2] == PANEL_SIDE[0]
    assert picture.shape[1] > 240
    assert picture[:, 239, 359].any()  # the overlay reaches its corner
    drawn = Segmentation.from_semantic(torch.zeros(90, 1000, dtype=torch.int64))
    picture = overlay_with_legend(torch.zeros(3, 90, 1000, dtype=torch.uint8), drawn, INFO)
    assert picture.shape[2] == 1000


def test_instances_lie_over_each_other_and_leave_the_rest_alone():
    masks = torch.zeros(3, 4, 9, dtype=torch.bool)
    masks[0, :, :6] = masks[1, :, 3:] = masks[2] = True
    drawn = Segmentation.from_instances(
        masks, torch.tensor([0, 2, 1]), torch.tensor([0.9, 0.8, 0.1]), min_score=0.5
    )
    assert drawn.labels[drawn.segments][0].tolist() == [0] * 6 + [2] * 3
    picture = overlay(torch.full((3, 4, 9), 100, dtype=torch.uint8), drawn, INFO, opacity=0.5)
    assert picture[:, 1, 0].tolist() == [150, 50, 50]
    assert picture[:, 1, 7].tolist() == [50, 50, 150]
    few = Segmentation.from_instances(masks[:1], torch.tensor([0]), torch.tensor([0.9]))
    image = torch.full((3, 4, 9), 100, dtype=torch.uint8)
    assert overlay(image, few, INFO)[:, 1, 8].tolist() == [100, 100, 100]
    legend = overlay_with_legend(image, few, INFO)[:, 160:]  # 4 x 9 became 160 x 360
    assert has_color(legend, (200, 0, 0))
    assert not has_color(legend, VOID)
    none = Segmentation.from_instances(masks[:0], torch.zeros(0).long(), torch.zeros(0))
    assert torch.equal(overlay(image, none, INFO), image)


def test_impossible_pictures():
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    fits = Segmentation(torch.zeros(4, 6, dtype=torch.int64), torch.tensor([0]))
    small = Segmentation(torch.zeros(4, 5, dtype=torch.int64), torch.tensor([0]))
    unknown = Segmentation(torch.zeros(4, 6, dtype=torch.int64), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"size of the image \[4, 6\], got \[4, 5\]"):
        overlay(image, small, INFO)
    with pytest.raises(ValueError, match=r"size of the image \[4, 6\], got \[4, 5\]"):
        overlay_with_legend(image, small, INFO)
    with pytest.raises(ValueError, match=r"prediction must have the size of the image \[4, 6\]"):
        side_by_side(image, fits, small, INFO)
    with pytest.raises(ValueError, match=r"must hold classes in 0..2, got \[3\]"):
        overlay(image, unknown, INFO)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colors": ()}, "one entry per class, got 3, 0 and 3"),
        ({"things": frozenset({3})}, r"things must lie in 0..2, got \[3\]"),
    ],
)
def test_impossible_classes(change, said):
    values = {name: getattr(INFO, name) for name in ("classes", "things", "colors", "category_ids")}
    with pytest.raises(ValueError, match=said):
        DatasetInfo(**values | change)


@pytest.mark.parametrize("name", ["background", "_background_", "__Background__", "void"])
def test_the_background_stays_clear(name):
    info = DatasetInfo((name, "cat"), frozenset(), ((9, 9, 9), (200, 0, 0)), (0, 1))
    image = torch.full((3, 400, 400), 100, dtype=torch.uint8)
    label_map = torch.zeros(400, 400, dtype=torch.int64)
    label_map[:, 200:] = 1
    drawn = Segmentation.from_semantic(label_map)
    picture = overlay(image, drawn, info, opacity=0.5)
    assert picture[:, 1, 0].tolist() == [100, 100, 100]
    assert picture[:, 1, 300].tolist() == [150, 50, 50]
    names = overlay_with_legend(image, drawn, info)[:, 400:]
    assert has_color(names, (200, 0, 0))
    assert not has_color(names, (9, 9, 9))


@pytest.mark.parametrize("covers_all", [True, False])
def test_each_level_is_blended_with_the_colour_of_its_segment(covers_all):
    image = torch.arange(256, dtype=torch.uint8).repeat(3, 24, 1)
    segments = torch.arange(-1, 3).repeat_interleave(6)[:, None].expand(24, 256)
    labels = torch.tensor([2, 0, 1])
    found = Segmentation(segments.int(), labels, covers_all)
    drawn = overlay(image, found, INFO, opacity=0.37)
    colors = torch.tensor([*segment_colors([2, 0, 1], INFO), (0, 0, 0)])
    weight = torch.tensor([0.37, 0.37, 0.37, 0.7 if covers_all else 0.0])
    expected = image * (1 - weight[segments]) + (colors * weight[:, None])[segments].permute(
        2, 0, 1
    )
    inside = torch.ones(24, dtype=torch.bool)
    inside[[5, 11, 17]] = False
    assert torch.equal(drawn[:, inside], expected.round().to(torch.uint8)[:, inside])
    assert (drawn[:, ~inside] == 255).all()


def test_an_overlay_in_bands_is_the_same(monkeypatch):
    sample = Shapes(ShapesConfig(), "val")[4]
    drawn = Segmentation.from_sample(sample)
    whole = overlay(sample.image, drawn, Shapes.info)
    monkeypatch.setattr(pictures, "PIXELS_AT_ONCE", 1000)
    assert torch.equal(overlay(sample.image, drawn, Shapes.info), whole)


def test_nothing_found_is_said(monkeypatch):
    """With other words the picture is another one; where something was found they are not there."""
    info = DatasetInfo(("_background_", "cat"), frozenset({1}), ((0, 0, 0), (200, 0, 0)), (0, 1))
    image = torch.full((3, 400, 400), 100, dtype=torch.uint8)
    background = Segmentation.from_semantic(torch.zeros(400, 400, dtype=torch.int64))
    void = Segmentation(torch.full((400, 400), -1), torch.zeros(0, dtype=torch.int64))
    none = Segmentation.from_instances(
        torch.zeros(0, 400, 400).bool(), torch.zeros(0).long(), torch.zeros(0)
    )
    cat = Segmentation.from_semantic(torch.ones(400, 400, dtype=torch.int64))

    def drawn():
        return [
            *(overlay_with_legend(image, found, info) for found in (background, void, none, cat)),
            *(side_by_side(image, cat, found, info) for found in (background, cat)),
        ]

    before = drawn()
    for module in (legend, pictures):
        monkeypatch.setattr(module, "NOTHING", "n")
    differs = [not torch.equal(one, other) for one, other in zip(before, drawn(), strict=True)]
    assert differs == [True, True, True, False, True, False]


def test_names_in_every_script(monkeypatch):
    """A system font where Pillow's lacks letters, the number of the class where all do."""
    assert fonts.font_for("cat", 15) is fonts.own_font(15)
    monkeypatch.setattr(fonts, "FOLDERS", ())
    for cached in (fonts.font_for, fonts._font_files):
        cached.cache_clear()
    info = DatasetInfo(("背景布", "车"), frozenset(), ((1, 1, 1), (200, 0, 0)), (0, 1))
    numbers = DatasetInfo(("class 0", "class 1"), *[getattr(info, n) for n in REST])
    image = torch.full((3, 400, 400), 100, dtype=torch.uint8)
    label_map = torch.zeros(400, 400, dtype=torch.int64)
    label_map[:, 300:] = 1
    drawn = Segmentation.from_semantic(label_map)
    assert fonts.font_for("车", 15) is None
    expected = overlay_with_legend(image, drawn, numbers)
    assert torch.equal(overlay_with_legend(image, drawn, info), expected)
    confusion = torch.tensor([[5, 1, 0], [2, 3, 0], [0, 0, 0]])
    matrices = [draw_confusion(confusion, classes.classes) for classes in (info, numbers)]
    assert matrices[0].tobytes() == matrices[1].tobytes()
    monkeypatch.undo()
    for cached in (fonts.font_for, fonts._font_files):
        cached.cache_clear()


@pytest.mark.skipif(not list(Path("/usr/share/fonts").rglob("DejaVuSans.ttf")), reason="no DejaVu")
def test_a_font_of_the_system_serves():
    font = fonts.font_for("дорога", 15)
    assert font is not None
    assert font is not fonts.own_font(15)
    assert len({bytes(font.getmask(letter)) for letter in "дорг"}) == 4


def test_titles_of_panels_are_those_of_files():
    """Names that have letters of other scripts, line ends, or more letters than there is room."""
    image, drawn = (
        torch.full((3, 400, 400), 100, dtype=torch.uint8),
        Segmentation.from_semantic(torch.zeros(400, 400, dtype=torch.int64)),
    )

    def titled(name):
        picture = side_by_side(image, None, drawn, INFO, titles=(name, "", "labels"))
        return picture, picture[:, :30, : 12 + 400], picture[:, :30, 12 + 400 :]

    plain, title, beside = titled("plain")
    for name in ("x" * 200, "a\nb", "車", "дорога", "\udcb3"):
        other = titled(name)
        assert other[0].shape == plain.shape
        assert torch.equal(other[2], beside)
        assert not torch.equal(other[1], title)
    assert torch.equal(titled("a\nb")[0], titled(r"a\x0ab")[0])
    if fonts.font_for("車", 15) is None:
        assert torch.equal(titled("車")[0], titled("image")[0])


def test_letters_of_large_pictures_grow():
    label_map = Segmentation.from_semantic(torch.zeros(60, 4800, dtype=torch.int64))
    picture = overlay_with_legend(torch.zeros(3, 60, 4800, dtype=torch.uint8), label_map, INFO)
    small = overlay_with_legend(
        torch.zeros(3, 60, 1200, dtype=torch.uint8),
        Segmentation.from_semantic(torch.zeros(60, 1200, dtype=torch.int64)),
        INFO,
    )
    assert picture.shape[1] - 60 == pytest.approx(4 * (small.shape[1] - 60), abs=4)


@pytest.mark.parametrize(("suffix", "form"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_pictures_in_all_formats(tmp_path, suffix, form):
    picture = torch.full((3, 40, 60), 100, dtype=torch.uint8)
    save_picture(picture, tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.format == form
        assert image.size == (60, 40)


def test_formats_have_largest_sides(tmp_path):
    config = tiny_recipe()
    for wanted, size, suffix in (
        ("auto", (2000, 2000), "png"),
        ("auto", (2001, 2000), "jpg"),
        ("auto", (70_000, 100), "png"),
        ("webp", (16_384, 2), "png"),
        ("webp", (16_383, 2), "webp"),
    ):
        section = config.predict.model_copy(update={"picture_format": wanted})
        writer = PictureWriter(tmp_path, INFO, config.model_copy(update={"predict": section}))
        assert writer._suffix(torch.empty(3, *size, device="meta")) == suffix
