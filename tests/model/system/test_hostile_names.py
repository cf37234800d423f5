"""Every command that writes, on data whose names are out to get it: nothing but the output folder
changes, and what is written can be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from helpers.model_cases import tiny_model
from helpers.official.checkpoints import Official, write_zoo
from helpers.recipes import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskformer.commands import convert, evaluate, predict, train
from maskformer.config.load import parse_config, to_yaml
from maskformer.config.schema import Config
from maskformer.data import DatasetInfo
from maskformer.data.palette import palette
from maskformer.errors import DatasetError
from maskformer.training.checkpoints.contents import DATASET
from maskformer.training.checkpoints.writing import info_to_json
from maskformer.weights.locate import RECIPE

CLASSES = ("sky", "\x1b[31mred\x1b[0m\n", "\udcb3\ud800 \u202egnp.exe 猫")
SIZE = (32, 40)
NASTY = [
    "plain",
    "PLAIN",
    "pla\u0131n",
    "1",
    "01",
    "001",
    "a b",
    "a\tb\nc",
    "\x1b]0;title\x07",
    "\udcb3\udcb5",
    "\u202egnp",
    "e\u0301",
    "\u00e9",
    "x" * 251,
    "猫" * 83,
    "-rf",
    "~",
    "$(id)",
    "%41",
    "a%0A",
    "C:",
    "..\\..\\up",
    "predictions",
    "panoptic.png",
    "[b]bold[red]",
]
ESCAPES = [
    "../../outside/photo.png",
    "ROOT/outside/photo.png",
    "/etc/passwd",
    "..\\..\\outside\\photo.png",
    "C:\\photo.png",
    "C:/photo.png",
    "link/photo.png",
    "",
    ".",
    "..",
    "./",
    "sub/",
    "nul\0.png",
    "z" * 300 + ".png",
    "\ud800.png",
    None,
    7,
]
names_on_disk = st.lists(st.sampled_from(NASTY), min_size=1, max_size=3, unique=True)


def hashes(root: Path, but: Path) -> dict[bytes, str]:
    """A digest of every file and link below a folder, except in the output."""
    found: dict[bytes, str] = {}
    for place, folders, names in os.walk(root):
        above = Path(place)
        folders[:] = [name for name in folders if above / name != but]
        for path in (above / name for name in (*names, *folders)):
            if path.is_symlink():
                found[bytes(path)] = str(path.readlink())
            elif path.is_file():
                found[bytes(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[bytes(path)] = "folder"
    return found


def picture(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8))


class Place:
    """A user's folder: data, things of value beside it, and an output folder that is not there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.output = root / "work" / "out"
        (root / "outside").mkdir()
        picture(9).save(root / "outside" / "photo.png")
        for folder in ("panoptic", "classes", "predictions"):
            (root / "work" / folder).mkdir(parents=True)
            picture(8).save(root / "work" / folder / "plain.png")
        (root / "work" / "metrics.json").write_text("mine")

    def folder_data(self, names: list[str]) -> dict[str, Any]:
        data = self.root / "data"
        for kind in ("images", "labels"):
            (data / kind / "sub").mkdir(parents=True)
        for index, name in enumerate([*names, "sub/a", "sub_a"]):
            picture(index).save(data / "images" / f"{name}.jpg", format="JPEG")
            labels = np.full(SIZE, index % 3, np.uint8)
            Image.fromarray(labels).save(data / "labels" / f"{name}.png", format="PNG")
        split = {"images": "images", "labels": "labels", "objects": "labels"}
        kind = {"format": "folder", "classes": list(CLASSES), "things": [CLASSES[1]]}
        return {**kind, "root": str(data), "train": split, "val": split}

    def coco_data(self, names: list[str], escape: str | None) -> dict[str, Any]:
        data = self.root / "data"
        (data / "img" / "sub").mkdir(parents=True)
        (data / "pan").mkdir()
        (data / "img" / "link").symlink_to(self.root / "outside")
        files = [f"{name}.jpg" for name in names] + ["sub/a.jpg", "sub/a.png", "sub_a.jpg"]
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [
            {"id": 3 * k, "name": name, "isthing": k % 2} for k, name in enumerate(CLASSES)
        ]
        for index, file in enumerate(files):
            (data / "img" / file).parent.mkdir(exist_ok=True)
            picture(index).save(data / "img" / file, format="PNG")
            Image.fromarray(np.full((*SIZE, 3), [1, 0, 0], np.uint8)).save(
                data / "pan" / f"{index}.png"
            )
            content["images"].append({"id": index, "file_name": file})
            content["annotations"].append(
                {
                    "image_id": index,
                    "file_name": f"{index}.png",
                    "segments_info": [{"id": 1, "category_id": 3, "iscrowd": 0}],
                }
            )
        if escape != "none":
            if isinstance(escape, str):
                escape = escape.replace("ROOT", str(self.root))
            content["images"][0]["file_name"] = escape
        (data / "pan.json").write_text(json.dumps(content))
        split = {"images": "img", "panoptic": "pan", "annotations": "pan.json"}
        return {"format": "coco_panoptic", "root": str(data), "train": split, "val": split}


def recipe(data: dict[str, Any]) -> Config:
    augmentation = {"kind": "semantic", "short_sides": [32], "crop": [32, 32]}
    return parse_config(
        {
            "model": TINY["model"],
            "data": {**data, "augmentation": augmentation, "test_short_side": None},
            "train": {**TINY["train"], "steps": 1, "batch_size": 2},
            "eval": {
                "panoptic": True,
                "object_mask_threshold": 0.0,
                "overlap_threshold": 0.0,
                "pictures": 9,
            },
        }
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model(num_classes=3)
    model.class_names = CLASSES
    model.save_pretrained(folder)
    info = DatasetInfo(CLASSES, frozenset({1}), palette(3), (0, 3, 6))
    (folder / DATASET).write_text(info_to_json(info))
    shapes = parse_config({"model": {"num_classes": 3}, "data": {"format": "shapes"}})
    (folder / RECIPE).write_text(to_yaml(shapes))
    return folder


def check_results(output: Path) -> None:
    """What is listed exists, once, under an id of its own, in text that any reader takes."""
    for file in output.glob("*.json"):
        file.read_text(encoding="utf-8")
        json.dumps(json.loads(file.read_bytes()), ensure_ascii=False).encode()
    for file in output.rglob("*"):
        assert file.is_dir() or not file.name.endswith(".partial")
        str(file.relative_to(output)).encode()
    file = output / "panoptic.json"
    if file.exists():
        content = json.loads(file.read_bytes())
        listed = [entry["file_name"] for entry in content["annotations"]]
        present = [
            f.relative_to(output / "panoptic").as_posix() for f in output.glob("panoptic/**/*.png")
        ]
        assert sorted(listed) == sorted(present)
        assert len({name.casefold() for name in listed}) == len(listed)
        ids = [image["id"] for image in content["images"]]
        assert ids == [entry["image_id"] for entry in content["annotations"]]
        assert len(set(ids)) == len(ids) == len({image["file_name"] for image in content["images"]})


def shown(names: list[str]) -> int:
    """How many are read: names that begin with a dot are hidden ones."""
    return sum(not name.startswith(".") for name in names)


def are_one(names: list[str]) -> bool:
    """Whether names differ in their form of Unicode only, so that data with them is refused."""
    return len({unicodedata.normalize("NFC", name) for name in names}) < len(names)


def leave_the_rest(place: Place, work: Any) -> bool:
    """Run `work`, which changes nothing outside of the output; return whether it was accepted."""
    before = hashes(place.root, place.output)
    accepted = True
    try:
        work()
    except DatasetError:
        accepted = False
        assert not [file for file in place.output.rglob("*") if file.suffix == ".png"]
    check_results(place.output)
    assert hashes(place.root, place.output) == before
    return accepted


few = settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@few
@given(names=names_on_disk)
def test_evaluate_on_folders(checkpoint: Path, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as root:
        place = Place(Path(root))
        config = recipe(place.folder_data(names))
        accepted = leave_the_rest(place, lambda: run_evaluate(checkpoint, config, place.output))
        assert accepted != are_one(names)
        if not accepted:
            return
        assert len(list(place.output.glob("classes/**/*.png"))) == shown(names) + 2
        assert len(list(place.output.glob("predictions/*.png"))) == shown(names) + 2


def run_evaluate(checkpoint: Path, config: Config, output: Path) -> None:
    evaluate.run(
        checkpoint, config, [], output, save_maps=True, tta=False, backend="auto", device="cpu"
    )


@settings(few, max_examples=14)
@given(names=names_on_disk, escape=st.sampled_from(["none", *ESCAPES]))
def test_evaluate_on_coco(checkpoint: Path, names: list[str], escape: str | None) -> None:
    with tempfile.TemporaryDirectory() as root:
        place = Place(Path(root))
        try:
            config = recipe(place.coco_data(names, escape))
        except OSError:
            return
        leave_the_rest(place, lambda: run_evaluate(checkpoint, config, place.output))


@few
@given(names=names_on_disk, mode=st.sampled_from(["semantic", "panoptic", "instance"]))
def test_predict(checkpoint: Path, names: list[str], mode: Any) -> None:
    with tempfile.TemporaryDirectory() as root:
        place = Place(Path(root))
        place.folder_data(names)
        leave_the_rest(
            place,
            lambda: predict.run(
                [str(place.root / "data" / "images")],
                checkpoint,
                place.output,
                mode=mode,
                tta=False,
                backend="auto",
                device="cpu",
            ),
        )
        assert len(list(place.output.glob("*.png"))) == shown(names) + 2


@settings(few, max_examples=2)
@given(names=names_on_disk, overwrite=st.booleans())
def test_train(names: list[str], overwrite: bool) -> None:
    with tempfile.TemporaryDirectory() as root:
        place = Place(Path(root))
        config = recipe(place.folder_data(names))
        accepted = leave_the_rest(
            place,
            lambda: train.run(
                config,
                [],
                place.output,
                resume=False,
                overwrite=overwrite,
                weights=None,
                backend="auto",
                cpu=True,
            ),
        )
        AcceleratorState._reset_state()
        assert accepted != are_one(names)
        if not accepted:
            return
        assert (place.output / "metrics.json").is_file()
        assert len(list(place.output.glob("predictions/*.png"))) == shown(names) + 2


@pytest.mark.parametrize("to", ["native", "hf", "official"])
def test_convert(tmp_path: Path, to: Any) -> None:
    place = Place(tmp_path)
    kind = Official(swin=True, channels=(16, 32, 64, 128), heads=(1, 2, 2, 4))
    source = write_zoo(tmp_path / "\udcb3 \x1b[31m.pkl", kind.state(zoo=True))
    leave_the_rest(place, lambda: convert.run(str(source), place.output, to))
    assert list(place.output.iterdir())
