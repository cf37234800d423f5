"""WebDataset's shards."""

from __future__ import annotations

import gzip
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.label_folders import columns, folder_config
from helpers.recipes import TINY, write_recipe
from helpers.shards import encode, pair, write_members

from maskformer.cli import main
from maskformer.config.load import parse_config
from maskformer.config.schema import EvalConfig, SemanticAugmentation, WebDatasetConfig
from maskformer.data import Batch, Dataset, TrainLoader, TrainTransform, build_dataset, check_splits
from maskformer.data.aspect import find_landscape
from maskformer.data.datasets.shards import read_shard
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.inspection.checks import check_objects
from maskformer.errors import ConfigError, DatasetError, OutputError
from maskformer.output.protected_inputs import check_output_beside_data

LABELS = columns(0, 1)


def config(root: Path, train: Any = "train.tar", **settings: Any) -> WebDatasetConfig:
    values = {"format": "webdataset", "root": str(root), "train": train, "val": train, **settings}
    data = parse_config({"data": values}).data
    assert isinstance(data, WebDatasetConfig)
    return data


def names_of(dataset: Dataset) -> list[str]:
    return [dataset[k].name for k in range(len(dataset))]


def write_shards(root: Path, shards: int, samples: int) -> Path:
    """`train-000.tar` and so on; the names of samples go on from one to the next."""
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for number in range(shard * samples, (shard + 1) * samples):
            members |= pair(f"{number:03}", np.full((40, 40), number % 2, np.uint8), number)
        write_members(root / f"train-{shard:03}.tar", members)
    return root


def test_samples_are_those_of_a_folder(tmp_path: Path) -> None:
    """With objects, in any order of the members."""
    rng = np.random.default_rng(0)
    members: dict[str, bytes] = {}
    for number in range(3):
        size = (6 + number, 8)
        members |= {
            f"{number}.jpg": encode(rng.integers(0, 255, (*size, 3), np.uint8), "JPEG"),
            f"{number}.png": encode(rng.integers(0, 3, size, np.uint8)),
            f"{number}.objects.png": encode(rng.integers(1, 4, size, np.uint8)),
        }
    write_members(tmp_path / "train.tar", dict(sorted(members.items(), key=lambda m: m[0][::-1])))
    for name, content in members.items():
        number, _, suffix = name.partition(".")
        folder = tmp_path / {"jpg": "images", "png": "labels"}.get(suffix, "objects")
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.{suffix[-3:]}").write_bytes(content)
    split = {"images": "images", "labels": "labels", "objects": "objects"}
    for things in ([], ["class 1"]):
        folder_data = folder_config(tmp_path, train=split, val=split, things=things)
        shard_data = config(tmp_path, objects="objects.png", things=things)
        expected, found = build_dataset(folder_data, "val"), build_dataset(shard_data, "val")
        assert found.info == expected.info
        order = names_of(found)
        assert sorted(order) == names_of(expected)
        for index, name in enumerate(order):
            one, other = found[index], expected[int(name)]
            for key in ("image", "segments", "labels", "crowd"):
                assert torch.equal(getattr(one, key), getattr(other, key))


def test_shards_names_and_suffixes(tmp_path: Path) -> None:
    root = write_shards(tmp_path, shards=3, samples=2)
    everything = [f"{number:03}" for number in range(6)]
    for patterns, expected in (
        ("train-{000..002}.tar", everything),
        ("train-*.tar", everything),
        (["train-002.tar", "train-00[01].tar"], [*everything[4:], *everything[:4]]),
        (str(root / "train-{000..001}.tar"), everything[:4]),
    ):
        assert names_of(build_dataset(config(root, patterns), "train")) == expected
    write_members(
        root / "odd.tar",
        {
            **pair("day/Ä.1", LABELS),
            "day/b.JPEG": pair("b", LABELS)["b.jpg"],
            "day/b.seg.png": encode(LABELS),
            "day/Ä.seg.png": encode(LABELS),
            "day/Ä.jpg": encode(np.zeros((2, 2, 3), np.uint8)),
            "day/b.json": b"{}",
            "._b.jpg": b"hidden",
            "README": b"none",
        },
    )
    dataset = build_dataset(config(root, "odd.tar", label=["cls.png", ".Seg.png"]), "train")
    assert names_of(dataset) == ["day/Ä", "day/b"]
    (note,) = dataset.notes  # type: ignore[attr-defined]
    assert "3 of another type (b.json, Ä.1.jpg, Ä.1.png)" in note


def test_a_share_of_the_training_shards(tmp_path: Path) -> None:
    data = config(write_shards(tmp_path, 2, 5), "train-*.tar", val=0.3)
    train, val = (names_of(build_dataset(data, split)) for split in ("train", "val"))
    assert (len(train), len(val)) == (7, 3)
    assert sorted(train + val) == [f"{number:03}" for number in range(10)]
    assert train == sorted(train)


def batches(dataset: Dataset, count: int, **options: Any) -> list[Batch]:
    transform = TrainTransform(SemanticAugmentation(short_sides=(32,), crop=(32, 32)))
    loader = TrainLoader(dataset, transform, batch_size=4, seed=3, **options)
    return [*itertools.islice(loader, count)]


def test_processes_and_workers_share_an_epoch_and_resume(tmp_path: Path) -> None:
    """Each sample once; from any step on, as if there had been no interruption."""
    dataset = build_dataset(config(write_shards(tmp_path, 3, 4), "train-*.tar"), "train")
    whole = batches(dataset, 6)
    shares = [batches(dataset, 6, rank=rank, world_size=2, workers=2) for rank in range(2)]
    for epoch in range(2):
        seen = Counter(
            name
            for share in shares
            for batch in share[epoch * 3 : (epoch + 1) * 3]
            for name in batch.names
        )
        assert seen == dict.fromkeys(names_of(dataset), 1)
    for step, batch in enumerate(whole):
        assert batch.names == sum((share[step].names for share in shares), ())
    for start in (1, 4):
        resumed = batches(dataset, 6 - start, start_step=start, workers=1)
        for batch, again in zip(whole[start:], resumed, strict=True):
            assert batch.names == again.names
            assert torch.equal(batch.pixel_values, again.pixel_values)
            assert torch.equal(batch.targets.labels, again.targets.labels)


def test_sizes_are_read_without_the_pixels(tmp_path: Path) -> None:
    shapes = [np.zeros(size, np.uint8) for size in ((4, 9), (9, 4), (6, 6))]
    members = [pair(str(number), labels) for number, labels in enumerate(shapes)]
    write_members(tmp_path / "train.tar", members[0] | members[1] | members[2])
    dataset = build_dataset(config(tmp_path), "train")
    assert find_landscape(dataset, ImageReader()).tolist() == [True, False, False]


def test_an_image_of_both_splits_is_told(tmp_path: Path) -> None:
    write_members(tmp_path / "train.tar", pair("a", LABELS) | pair("b", LABELS))
    write_members(tmp_path / "val.tar", pair("c", LABELS) | pair("b", LABELS))
    data = config(tmp_path, val="val.tar")
    warnings = check_splits(build_dataset(data, "train"), build_dataset(data, "val"))
    assert ["(b.jpg)" in text for text in warnings] == [True]


def damage(kind: str, whole: bytes) -> bytes:
    header = whole.index(b"b.jpg")
    if kind == "within a member":
        return whole[: header + 700]
    if kind == "behind a member":
        return whole[:header]
    if kind == "within a header":
        return whole[: header + 100]
    if kind == "a header":
        return whole[:header] + b"\xff" * 512 + whole[header + 512 :]
    if kind == "no memory":  # a name of so many bytes
        long = tarfile.TarInfo("x")
        long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 62
        return long.tobuf(tarfile.GNU_FORMAT)[:512] + bytes(10_240)
    return {"compressed": gzip.compress(whole), "empty": b"", "no tar": b"text\n" * 500}[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("within a member", "cannot be read .*unexpected end of data"),
        ("behind a member", "damaged or cut off after byte"),
        ("within a header", "damaged or cut off after byte"),
        ("a header", "damaged or cut off after byte"),
        ("compressed", "uncompressed"),
        ("empty", "cannot be read .*empty file"),
        ("no memory", r"cannot be read \(it does not fit into memory\)"),
        ("no tar", "cannot be read"),
    ],
)
def test_damaged_shards(tmp_path: Path, kind: str, message: str) -> None:
    file = write_members(tmp_path / "train.tar", pair("a", LABELS) | pair("b", LABELS))
    file.write_bytes(damage(kind, file.read_bytes()))
    with pytest.raises(DatasetError, match=rf"shard \S*train\.tar .*{message}"):
        build_dataset(config(tmp_path), "train")


def test_joined_archives(tmp_path: Path) -> None:
    """As `cat a.tar b.tar` makes them; a sample may lie in both."""
    parts = [{**pair("a", LABELS), "c.jpg": b"image"}, {"c.png": encode(LABELS)}, pair("b", LABELS)]
    files = [write_members(tmp_path / f"{k}.tar", part) for k, part in enumerate(parts)]
    whole = b"".join(file.read_bytes() for file in files)
    for padding in (b"", bytes(512), bytes(20_000)):
        (tmp_path / "train.tar").write_bytes(whole + padding)
        samples = read_shard(tmp_path / "train.tar")
        assert [sample.key for sample in samples] == ["a", "c", "b"]
        for sample, part in zip(samples, (parts[0], parts[0] | parts[1], parts[2]), strict=True):
            found = {m.path: m.open().read() for m in sample.members.values()}
            assert found == {n: c for n, c in part.items() if n.startswith(sample.key)}
    first, *_, last = (file.read_bytes() for file in files)
    for behind in (b"text\n" * 500, b"\1", last[:1000], last[1:], b"\1" + last):
        (tmp_path / "train.tar").write_bytes(first + behind)
        with pytest.raises(DatasetError, match=r"train\.tar (is damaged or cut|cannot be read)"):
            read_shard(tmp_path / "train.tar")
    (tmp_path / "train.tar").write_bytes(first + first)
    with pytest.raises(DatasetError, match=r"train\.tar holds a\.jpg twice"):
        read_shard(tmp_path / "train.tar")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    good = pair("a", LABELS)
    lacking = {"b.jpg": good["a.jpg"], "b.json": b"{}"}
    write_members(tmp_path / "train.tar", good)
    write_members(tmp_path / "lacking.tar", good | lacking)
    write_members(tmp_path / "labels.tar", {"b.png": good["a.png"]})
    write_members(tmp_path / "nothing.tar", {"b.json": b"{}"})
    for train, settings, message in (
        ("lacking.tar", {}, r"data\.label: .*lacking\.tar has no member b\.png; .* \.jpg, \.json"),
        ("labels.tar", {}, r"data\.image: .*labels\.tar has no member b\.jpg; .* it has \.png"),
        ("train.tar", {"objects": "o.png"}, r"data\.objects: .* has no member a\.o\.png"),
        ("nothing.tar", {}, r"data\.image: no shard .* has an image \.jpg; .* are \.json"),
        ("train-{0..3}.tar", {}, r"data\.train: there is no file .*train-0\.tar"),
        ("none-*.tar", {}, r"data\.train: there is no file .*none-\*\.tar"),
        (["train.tar", "t*.tar"], {}, r"data\.train names .*train\.tar twice"),
        ("{0..9999}{0..9999}", {}, r"data\.train names more than"),
    ):
        with pytest.raises(DatasetError, match=message):
            build_dataset(config(tmp_path, train, **settings), "train")
    for settings, message in (
        ({"image": []}, r"data\.image"),
        ({"label": ["png", "jpg"]}, r"the suffix jpg is used for both image and label"),
        ({"objects": ".PNG"}, r"the suffix png is used for both label and objects"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(tmp_path, **settings)


def test_a_member_twice(tmp_path: Path) -> None:
    members = pair("a", LABELS) | {"a.PNG": encode(LABELS)}
    write_members(tmp_path / "train.tar", members)
    with pytest.raises(DatasetError, match=r"train\.tar holds a\.PNG twice"):
        build_dataset(config(tmp_path), "train")


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_members(tmp_path / "train.tar", {**pair("a", LABELS), "a.jpg": b"nothing"})
    dataset = build_dataset(config(tmp_path), "train")
    with pytest.raises(DatasetError, match=r"image file .*train\.tar/a\.jpg cannot be read"):
        dataset[0]


def test_things_need_objects(tmp_path: Path) -> None:
    evaluation = EvalConfig(panoptic=True)
    check_objects(config(tmp_path, things=["a"], objects="objects.png"), evaluation)
    with pytest.raises(ConfigError, match=r"set data\.objects to the suffix"):
        check_objects(config(tmp_path, things=["a"]), evaluation)


def test_no_output_over_shards(tmp_path: Path) -> None:
    write_members(tmp_path / "data" / "inner" / "train.tar", pair("a", LABELS))
    data = config(tmp_path / "data", "inner/train.tar")
    dataset = build_dataset(data, "train")
    check_output_beside_data(tmp_path / "data" / "run", data, dataset)
    for folder in (tmp_path, tmp_path / "data", tmp_path / "data" / "inner"):
        with pytest.raises(OutputError, match="cannot be the output folder"):
            check_output_beside_data(folder, data, dataset)


def test_it_is_checked_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_shards(tmp_path / "data", 2, 2)
    data = {**TINY["data"], "format": "webdataset", "root": str(root)}
    data |= {"train": "train-{000..001}.tar", "val": 0.5}
    for key in ("image_size", "train_images", "val_images"):
        del data[key]
    train = {**TINY["train"], "steps": 1, "workers": 1}
    recipe = write_recipe(tmp_path, {**TINY, "data": data, "train": train, "eval": {}})
    for command in (
        ["data", "check", "--config", recipe, "--output", tmp_path / "checks"],
        ["train", "--cpu", "--config", recipe, "--output", tmp_path / "run"],
    ):
        monkeypatch.setattr("sys.argv", ["maskformer", *map(str, command)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    assert any((tmp_path / "checks" / "train").iterdir())
    assert 0 <= json.loads((tmp_path / "run" / "metrics.json").read_text())["miou"] <= 1
