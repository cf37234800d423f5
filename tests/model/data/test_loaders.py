"""Batches: the same for the same seed and step, however they are prepared and shared out."""

from __future__ import annotations

import io
import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile, putchunk

from maskformer import ImageProcessor
from maskformer.config.schema import (
    ModelConfig,
    PanopticAugmentation,
    SemanticAugmentation,
    ShapesConfig,
)
from maskformer.data import (
    EvalLoader,
    Normalize,
    Sample,
    Shapes,
    TrainLoader,
    TrainTransform,
)
from maskformer.data.aspect import GroupedByAspect, find_landscape
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.loaders import Batch, EvalBatch, derive_seed
from maskformer.errors import DatasetError

SHAPES = Shapes(ShapesConfig(image_size=(32, 40), train_images=13), "train")
TRANSFORM = TrainTransform(SemanticAugmentation(short_sides=(24, 32), crop=(32, 32)))


def take(count, dataset=SHAPES, transform=TRANSFORM, batch_size=4, seed=1, **options):
    return list(
        itertools.islice(TrainLoader(dataset, transform, batch_size, seed, **options), count)
    )


def same(a, b):
    return (
        a.names == b.names
        and a.targets.counts == b.targets.counts
        and torch.equal(a.pixel_values, b.pixel_values)
        and torch.equal(a.targets.label_map, b.targets.label_map)
        and torch.equal(a.targets.labels, b.targets.labels)
    )


def all_same(first, second):
    return len(first) == len(second) and all(map(same, first, second))


class Fixed:
    """A data set of given images."""

    info = SHAPES.info

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        if isinstance(sample, Exception):
            raise sample
        return sample


def blank(height, width, value=0, name="x"):
    image = torch.full((3, height, width), value, dtype=torch.uint8)
    segments = torch.full((height, width), -1, dtype=torch.int32)
    return Sample(
        image, segments, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool), name
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    assert all_same(take(8), take(8, workers=workers))


def test_resuming_is_starting_at_a_step():
    whole = take(12)
    for step in (1, 5, 11):
        assert all_same(whole[step:], take(12 - step, start_step=step, workers=step % 2))


def test_seeds_differ_and_repeat():
    assert all_same(take(3), take(3))
    assert not any(map(same, take(3), take(3, seed=2)))


def test_processes_share_a_batch():
    whole = take(8)
    shares = [take(8, rank=rank, world_size=2) for rank in (0, 1)]
    for joined, *parts in zip(whole, *shares, strict=True):
        assert joined.names == sum((part.names for part in parts), ())
        assert torch.equal(joined.pixel_values, torch.cat([part.pixel_values for part in parts]))
        assert torch.equal(
            joined.targets.label_map, torch.cat([part.targets.label_map for part in parts])
        )


def test_parts_of_a_step():
    whole = take(4)
    parts = take(8, accumulate=2)
    ranks = [take(8, batch_size=8, rank=r, world_size=2, accumulate=2) for r in (0, 1)]
    for step, joined in enumerate(whole):
        assert joined.names == sum((part.names for part in parts[2 * step : 2 * step + 2]), ())
    for step, joined in enumerate(take(4, batch_size=8)):
        pieces = [part for rank in ranks for part in rank[2 * step : 2 * step + 2]]
        assert joined.names == sum((part.names for part in pieces), ())
    resumed = take(4, accumulate=2, start_step=2)
    assert all_same(parts[4:], resumed)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 7), batch_size=st.integers(1, 9), seed=st.integers(0, 2**70))
def test_each_epoch_shows_every_image_once(length, batch_size, seed):
    data = Fixed(*(blank(2, 2, name=str(k)) for k in range(length)))
    transform = TrainTransform(SemanticAugmentation(short_sides=(2,), crop=(2, 2), color=False))
    batches = take(3 * length, data, transform, batch_size, seed)
    names = [name for batch in batches for name in batch.names]
    epochs = [names[i : i + length] for i in range(0, 3 * length, length)]
    assert all(sorted(epoch) == sorted(str(k) for k in range(length)) for epoch in epochs)


def grouped(landscape):
    """Tiny images named by their number, with a group each."""
    data = Fixed(*(blank(2, 2, name=str(k)) for k in range(len(landscape))))
    return GroupedByAspect(data, np.array(landscape))


@settings(max_examples=30, deadline=None)
@given(
    landscape=st.lists(st.booleans(), min_size=1, max_size=7),
    size=st.integers(1, 4),
    shares=st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2)]),
    step=st.integers(0, 12),
)
def test_batches_hold_one_shape_of_images(landscape, size, shares, step):
    """Each takes the next images of its group, and full ones come in turn, wherever one starts."""
    world_size, accumulate = shares
    transform = TrainTransform(SemanticAugmentation(short_sides=(2,), crop=(2, 2), color=False))
    options = {"batch_size": size * world_size * accumulate, "accumulate": accumulate}
    ranks = [
        take(
            2 * accumulate,
            grouped(landscape),
            transform,
            rank=rank,
            world_size=world_size,
            start_step=step,
            **options,
        )
        for rank in range(world_size)
    ]
    steps = [rank[k : k + accumulate] for k in (0, accumulate) for rank in ranks]
    found = [batch.names for part in steps for batch in part]

    count, expected = (step + 2) * world_size * accumulate, []
    plain = take((count + 2) * size, grouped(landscape), transform, batch_size=1)
    buckets = {True: [], False: []}
    for batch in plain:
        bucket = buckets[landscape[int(batch.names[0])]]
        bucket += batch.names
        if len(bucket) == size:
            expected.append(tuple(bucket))
            bucket.clear()
    assert found == expected[count - len(found) : count]


def test_the_bar_of_shapes_comes_to_its_end(tmp_path, monkeypatch):
    ended = []

    def watched(items, total, title):
        yield from items
        ended.append((total, title))

    monkeypatch.setattr("maskformer.data.progress.track", watched)
    data = Fixed()
    data.files = [(tmp_path / "none.jpg",)] * 3
    assert len(find_landscape(data, ImageReader())) == 3
    assert ended == [(3, "Reading image sizes")]


@pytest.mark.parametrize("rule", [None, "ignore"])
def test_shapes_of_images_are_read_from_headers(tmp_path, rule):
    """As the reader turns them, of whatever format; what cannot be read is no landscape."""
    turn = Image.Exif()
    turn[0x112] = 6
    for suffix in ("jpg", "png", "tiff"):
        Image.new("RGB", (9, 5)).save(tmp_path / f"wide.{suffix}")
        Image.new("RGB", (9, 5)).save(tmp_path / f"turned.{suffix}", exif=turn)
    np.save(tmp_path / "bands.npy", np.zeros((3, 5, 9), np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no image")
    data, reader = Fixed(), ImageReader(orientation=rule)
    files = sorted(tmp_path.iterdir())
    data.files = [(file,) for file in files]
    landscape = find_landscape(data, reader)
    others = {file.name for file, wide in zip(files, landscape, strict=True) if not wide}
    turned = {f"turned.{suffix}" for suffix in ("jpg", "png", "tiff")}
    assert others == {"broken.png"} | (turned if rule is None else set())
    for file in files:
        if file.name != "broken.png":
            assert reader.read_size(file) == tuple(reader(file).shape[1:])


@pytest.mark.parametrize("place", ["exif", "xmp", "frames"])
def test_sizes_of_png_are_read_without_their_pixels(tmp_path, monkeypatch, place):
    """Whatever stands behind them is found as the reader finds it; broken ends do no harm."""
    file, turn = tmp_path / "x.png", Image.Exif()
    turn[0x112] = 6
    frames = [Image.new("RGB", (9, 5), "red")] if place == "frames" else []
    Image.new("RGB", (9, 5)).save(file, save_all=bool(frames), append_images=frames)
    late = io.BytesIO()
    if place == "xmp":
        putchunk(late, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0", b'<a tiff:Orientation="6"/>')
    else:
        putchunk(late, b"eXIf", turn.tobytes()[6:])
    content = file.read_bytes()
    end = content.rindex(b"IEND") - 4
    file.write_bytes(content[:end] + late.getvalue() + content[end:])
    expected = tuple(ImageReader()(file).shape[1:])
    assert expected == ((5, 9) if frames else (9, 5))

    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    monkeypatch.setattr(PngImageFile, "load", None)
    assert ImageReader().read_size(file) == expected
    for kind in (b"eXIf", b"IDAT", b""):
        file.write_bytes(content[:end] + b"\xff\xff\xff\xff" + kind)
        assert ImageReader().read_size(file) == (5, 9)


def test_epochs_have_their_own_order_and_augmentation():
    data = Fixed(*(SHAPES[k] for k in range(8)))
    batches = take(2, data, batch_size=8)
    assert sorted(batches[0].names) == sorted(batches[1].names)
    assert batches[0].names != batches[1].names
    images = [dict(zip(b.names, b.pixel_values, strict=True)) for b in batches]
    assert sum(torch.equal(images[0][name], images[1][name]) for name in images[0]) <= 1


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(workers):
    before = torch.get_rng_state()
    take(2, workers=workers)
    list(EvalLoader(SHAPES, ImageProcessor(None, None).batch, workers=workers))
    assert torch.equal(before, torch.get_rng_state())


def test_normalisation_and_padding():
    transform = TrainTransform(
        PanopticAugmentation(short_sides=(20,), crop_short_sides=(20,), flip=False)
    )
    data = Fixed(blank(20, 25, 100), blank(28, 20, 50))
    normalize = Normalize((100.0, 50.0, 0.0), (1.0, 2.0, 4.0), size_divisibility=16)
    (batch,) = take(1, data, transform, 2, normalize=normalize)
    assert batch.pixel_values.dtype == torch.float32
    assert batch.pixel_values.shape == (2, 3, 32, 32)
    assert batch.targets.size == (32, 32)
    for image in batch.pixel_values:
        colors = {tuple(c) for c in image.flatten(1).T.tolist()}
        assert colors <= {(0.0, 25.0, 25.0), (-50.0, 0.0, 12.5), (0.0, 0.0, 0.0)}
        assert len(colors) == 2
    unpadded = Normalize(size_divisibility=0)
    assert unpadded([blank(35, 47).image, blank(46, 33).image]).shape == (2, 3, 46, 47)
    # A model takes nothing smaller.
    assert unpadded([blank(5, 47).image]).shape == (1, 3, 32, 47)
    config = ModelConfig(pixel_mean=(1, 2, 3), pixel_std=(4, 5, 6), size_divisibility=0)
    assert Normalize.from_config(config) == Normalize((1, 2, 3), (4, 5, 6), 0)


def test_targets_are_the_samples_segments():
    (batch,) = take(1, batch_size=3)
    again = {s.name: s for s in SHAPES}
    assert batch.targets.batch_size == 3
    for name, label_map, labels in zip(
        batch.names,
        batch.targets.label_map,
        batch.targets.labels.split(batch.targets.counts),
        strict=True,
    ):
        assert label_map.max() == len(labels) - 1
        assert set(labels.tolist()) <= set(again[name].labels.tolist())


def test_a_batch_without_any_segment():
    data = Fixed(blank(8, 8), blank(8, 8))
    transform = TrainTransform(SemanticAugmentation(short_sides=(8,), crop=(8, 8)))
    (batch,) = take(1, data, transform, 2)
    assert batch.targets.counts == (0, 0)
    assert (batch.targets.label_map == -1).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_unusable_samples_raise_their_own_message(workers):
    data = Fixed(DatasetError("label file a.png has the value 9"))
    with pytest.raises(DatasetError, match=r"^label file a.png has the value 9$"):
        take(1, data, batch_size=1, workers=workers)
    with pytest.raises(DatasetError, match=r"^label file a.png has the value 9$"):
        list(EvalLoader(data, ImageProcessor(None, None).batch, workers=workers))


def test_evaluation_shows_every_image_once_and_in_order():
    loader = EvalLoader(SHAPES, ImageProcessor(16, None).batch, batch_size=4)
    batches = list(loader)
    assert len(loader) == len(batches) == 4
    samples = [sample for batch in batches for sample in batch.samples]
    assert [sample.name for sample in samples] == [SHAPES[k].name for k in range(13)]
    assert torch.equal(samples[3].image, SHAPES[3].image)
    assert batches[0].pixel_values.shape == (4, 3, 32, 32)
    assert batches[0].image_sizes == ((16, 20),) * 4
    assert batches[0].original_sizes == ((32, 40),) * 4


@pytest.mark.parametrize("limit", [None, 5])
def test_evaluation_is_shared_out(limit):
    loaders = [
        EvalLoader(
            SHAPES, ImageProcessor(None, None).batch, 2, rank, 3, workers=rank % 2, limit=limit
        )
        for rank in range(3)
    ]
    names = [[s.name for batch in loader for s in batch.samples] for loader in loaders]
    assert [len(part) for part in names] == [loader.num_images for loader in loaders]
    assert sorted(itertools.chain(*names)) == [SHAPES[k].name for k in range(limit or 13)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "positive multiple of processes x accumulate = 1 x 1, got 0"),
        ({"batch_size": 6, "world_size": 2, "accumulate": 2}, "= 2 x 2, got 6"),
        ({"rank": 2, "world_size": 2}, r"rank must lie in 0..1, got 2"),
        ({"start_step": -1}, "start_step must not be negative, got -1"),
        ({"workers": -1}, "workers must not be negative, got -1"),
        ({"dataset": Fixed()}, "the data set holds no image"),
    ],
)
def test_impossible_settings(options, said):
    with pytest.raises(ValueError, match=said):
        take(1, **options)


def test_there_are_no_more_workers_than_the_process_may_use_cpus(monkeypatch):
    """Slurm and `taskset` give a process some of the machine's CPUs, which its workers inherit."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert TrainLoader(SHAPES, TRANSFORM, 4, seed=1, workers=4)._loader.num_workers == 1


def test_impossible_evaluation_settings():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        EvalLoader(SHAPES, ImageProcessor(None, None).batch, 0)
    with pytest.raises(ValueError, match=r"rank must lie in 0..0, got 1"):
        EvalLoader(SHAPES, ImageProcessor(None, None).batch, rank=1)


def test_derived_seeds():
    seeds = {derive_seed(0, "order", k) for k in range(1000)} | {derive_seed(0, "augment", 1)}
    assert len(seeds) == 1001
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(3, "order", 7) == 6328237207186692081


def test_batches_move_to_a_device():
    (batch,) = take(1)
    (evaluation, *_) = EvalLoader(SHAPES, ImageProcessor(None, None).batch)
    moved = batch.to("meta")
    assert moved.pixel_values.is_meta
    assert moved.targets.label_map.is_meta
    assert evaluation.to("meta").pixel_values.is_meta
    assert evaluation.to("meta").samples is evaluation.samples


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_can_be_pinned():
    batch: Batch = take(1, pin_memory=True)[0]
    evaluation: EvalBatch = next(
        iter(EvalLoader(SHAPES, ImageProcessor(None, None).batch, pin_memory=True))
    )
    assert batch.pixel_values.is_pinned()
    assert batch.targets.label_map.is_pinned()
    assert evaluation.pixel_values.is_pinned()
