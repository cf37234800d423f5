"""Tables of Hugging Face's `datasets`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.label_folders import columns
from helpers.recipes import TINY, write_recipe
from PIL import Image

from maskformer.cli import main
from maskformer.config.load import parse_config
from maskformer.config.schema import HuggingFaceConfig
from maskformer.data import Dataset, build_dataset, check_splits
from maskformer.errors import ConfigError, DatasetError


def config(root: Path, **settings: Any) -> HuggingFaceConfig:
    data = parse_config({"data": {"format": "huggingface", "root": str(root), **settings}}).data
    assert isinstance(data, HuggingFaceConfig)
    return data


def png(pixels: Any) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def save(root: Path, splits: dict[str, list[Any]], column: str = "label") -> None:
    """Tables of label maps; an image is as large as its labels."""
    datasets = pytest.importorskip("datasets")
    kinds = {"image": datasets.Image(), column: datasets.Image(), "n": datasets.Value("int32")}
    tables = {
        name: datasets.Dataset.from_dict(
            {
                "image": [png(np.full((*labels.shape, 3), 9, np.uint8)) for labels in maps],
                column: [png(labels) for labels in maps],
                "n": list(range(len(maps))),
            },
            features=datasets.Features(kinds),
        )
        for name, maps in splits.items()
    }
    whole = tables["train"] if len(tables) == 1 else datasets.DatasetDict(tables)
    whole.save_to_disk(root)


def maps_of(dataset: Dataset) -> list[list[int]]:
    return [dataset[k].semantic_map()[0].tolist() for k in range(len(dataset))]


def test_splits_columns_and_values(tmp_path: Path) -> None:
    deep = columns(300, 7, 65535, dtype=np.uint16)
    save(tmp_path, {"train": [columns(0, 1, 255), columns(1, 1, 1)], "test": [deep]}, "annotation")
    settings = {"label": "annotation", "val": "test"}
    train = build_dataset(config(tmp_path, **settings), "train")
    assert train.info.classes == ("class 0", "class 1")
    assert maps_of(train) == [[0, 1, -1], [1, 1, 1]]
    assert [train[k].name for k in range(2)] == ["train-000000", "train-000001"]
    rules = {"label_map": {300: "far", 7: "near", "*": None}}
    assert maps_of(build_dataset(config(tmp_path, **settings, **rules), "val")) == [[0, 1, -1]]


def test_a_share_of_one_table(tmp_path: Path) -> None:
    save(tmp_path, {"train": [columns(0, k) for k in range(5)]})
    parts = [build_dataset(config(tmp_path, val=0.4), split) for split in ("train", "val")]
    assert [len(part) for part in parts] == [3, 2]
    assert parts[0].info == parts[1].info
    found = sorted(row[1] for part in parts for row in maps_of(part))
    assert found == [0, 1, 2, 3, 4]


def test_it_trains_and_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.tile((np.arange(64) // 22).astype(np.uint8), (64, 1))
    save(tmp_path / "data", {"train": [labels, labels.T], "validation": [labels]})
    data = {**TINY["data"], "format": "huggingface", "root": str(tmp_path / "data")}
    for key in ("image_size", "train_images", "val_images"):
        del data[key]
    train = {**TINY["train"], "steps": 1, "workers": 1}
    recipe = write_recipe(tmp_path, {**TINY, "data": data, "train": train, "eval": {}})
    arguments = ["train", "--cpu", "--config", recipe, "--output", tmp_path / "run"]
    monkeypatch.setattr("sys.argv", ["maskformer", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert 0 <= json.loads((tmp_path / "run" / "metrics.json").read_text())["miou"] <= 1


def test_what_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    save(tmp_path / "a", {"train": [columns(0, 1)], "validation": [columns(0, 1)]})
    for settings, message in (
        ({"val": "test"}, r"data\.val: .* has no split test; it has train, validation"),
        ({"label": "mask"}, r"data\.label: .* has no column mask of images; its columns: image"),
        ({"image": "n"}, r"data\.image: .* has no column n of images"),
        ({"classes": ["one"]}, r"train\[0\]\.label has the value 1"),
    ):
        with pytest.raises(DatasetError, match=message):
            check(config(tmp_path / "a", **settings))
    for root in (tmp_path, tmp_path / "none", Path("nobody/nothing")):
        with pytest.raises(DatasetError, match=r"data\.root: .* cannot be loaded .* save_to_disk"):
            build_dataset(config(root), "train")
    with pytest.raises(ConfigError, match=r"data\.things"):
        config(tmp_path, things=["a"])


def check(settings: HuggingFaceConfig) -> None:
    check_splits(build_dataset(settings, "train"), build_dataset(settings, "val"))


def test_cells_that_name_files_and_broken_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    Image.fromarray(columns(1, 1)).save(tmp_path / "there.png")
    names = {str(tmp_path / "there.png"): None, str(tmp_path / "missing.png"): "does not exist"}
    cells: list[Any] = [{"bytes": None, "path": name} for name in names]
    cells += [{"bytes": b"nothing", "path": None}, None]
    messages = [*names.values(), "it is broken", "the cell is empty"]
    image = png(np.zeros((2, 2, 3), np.uint8))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [image] * 4, "label": cells}, features)
    monkeypatch.setattr(datasets, "load_from_disk", lambda _: table)
    dataset = build_dataset(config(tmp_path, classes=["a", "b"]), "train")
    assert dataset[0].labels.tolist() == [1]
    for row, message in enumerate(messages[1:], 1):
        with pytest.raises(DatasetError, match=rf"label file train\[{row}\]\.label .*{message}"):
            dataset[row]


def test_a_table_names_no_file_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    root, cache = tmp_path / "root", tmp_path / "cache"
    for folder in (root, cache):
        folder.mkdir()
        Image.fromarray(columns(1, 1)).save(folder / "own.png")
    Image.fromarray(columns(1, 1)).save(tmp_path / "private.png")
    (root / "link.png").symlink_to(tmp_path / "private.png")
    names = ["root/own.png", "cache/own.png", "private.png", "root/../private.png", "root/link.png"]
    cells = [{"bytes": None, "path": str(tmp_path / name)} for name in names]
    image = png(np.zeros((2, 2, 3), np.uint8))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [image] * 5, "label": cells}, features)
    monkeypatch.setattr(datasets, "load_from_disk", lambda _: table)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    dataset = build_dataset(config(root, classes=["a", "b"]), "train")
    assert [dataset[row].labels.tolist() for row in (0, 1)] == [[1], [1]]
    for row in (2, 3, 4):
        with pytest.raises(
            DatasetError, match=rf"train\[{row}\]\.label names the file .*{names[row]}"
        ):
            dataset[row]


def test_a_cell_reads_no_other_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    save(tmp_path, {"train": [columns(0, 1), columns(0, 1)]})
    dataset = build_dataset(config(tmp_path, val=0.5), "train")
    read = []
    row_of = datasets.Dataset.__getitem__

    def note(table: Any, key: Any) -> Any:
        row = row_of(table, key)
        read.append(list(row))
        return row

    monkeypatch.setattr(datasets.Dataset, "__getitem__", note)
    assert dataset[0].labels.tolist() == [0, 1]
    assert sorted(read) == [["image"], ["label"]]


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"pip install 'mfkernels\[datasets\]'"):
        build_dataset(config(tmp_path), "train")


def test_a_folder_named_datasets_is_not_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m` and torchrun import such a folder in the current one as an empty package."""
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    with pytest.raises(DatasetError, match=r"pip install 'mfkernels\[datasets\]'"):
        build_dataset(config(tmp_path), "train")
