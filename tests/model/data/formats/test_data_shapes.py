"""The generated data set: repeatable, complete, and never the same in two splits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskformer.config.schema import ShapesConfig
from maskformer.data import Shapes, build_dataset, check_dataset


def same(a, b):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("image", "segments", "labels", "crowd")
    )


def test_access_is_random_and_repeatable():
    first, second = Shapes(ShapesConfig(), "train"), Shapes(ShapesConfig(), "train")
    forwards = [first[i] for i in range(5)]
    backwards = [second[i] for i in reversed(range(5))]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert same(first[-1], first[len(first) - 1])


def test_splits_and_seeds_differ():
    pictures = [
        build_dataset(ShapesConfig(seed=seed), split)[i].image
        for seed in (0, 1)
        for split in ("train", "val")
        for i in range(10)
    ]
    assert len({picture.numpy().tobytes() for picture in pictures}) == len(pictures)


def test_every_kind_of_case_occurs():
    data = Shapes(ShapesConfig(train_images=400), "train")
    samples = list(data)
    things = torch.tensor([k in data.info.things for k in range(data.info.num_classes)])
    assert len(samples) == data.num_images == 400
    assert any(len(s.labels) == 0 for s in samples)
    assert any(len(s.labels) and not things[s.labels].any() for s in samples)
    assert any((s.segments < 0).any() and len(s.labels) for s in samples)
    assert any(s.crowd.any() for s in samples)
    smallest = min(
        int(s.segments.flatten().add(1).bincount()[1:].min()) for s in samples if len(s.labels)
    )
    assert smallest < 20
    seen = torch.cat([s.labels for s in samples]).bincount(minlength=data.info.num_classes)
    assert (seen > 50).all()


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(8, 150),
    width=st.integers(8, 150),
    seed=st.integers(0, 10**9),
    index=st.integers(0, 99),
)
def test_samples_are_well_formed(height, width, seed, index):
    config = ShapesConfig(image_size=(height, width), seed=seed, val_images=100)
    sample = Shapes(config, "val")[index]
    assert sample.image.shape == (3, height, width)
    assert sample.image.dtype == torch.uint8
    assert sample.segments.shape == (height, width)
    assert sample.segments.dtype == torch.int32
    count = len(sample.labels)
    assert sample.crowd.shape == (count,)
    # Numbered without gaps: a hidden segment is no segment.
    assert sample.segments.unique().tolist() in (list(range(count)), list(range(-1, count)))


def test_outside_is_an_index_error():
    data = Shapes(ShapesConfig(val_images=3), "val")
    with pytest.raises(IndexError, match="index 3 is outside a data set of 3 images"):
        data[3]
    assert len(list(data)) == 3


def test_the_doctor_is_content():
    assert check_dataset(Shapes(ShapesConfig(), "train"), limit=200) == []


def test_unknown_split():
    with pytest.raises(ValueError, match="split must be 'train' or 'val', got 'test'"):
        build_dataset(ShapesConfig(), "test")
