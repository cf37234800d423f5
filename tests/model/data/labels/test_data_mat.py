"""Label maps in MATLAB files, as COCO-Stuff-10K has them."""

from __future__ import annotations

import random
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.label_folders import folder_config
from PIL import Image
from scipy.io import savemat

from maskformer.data import build_dataset
from maskformer.data.label_reader import read_labels
from maskformer.errors import DatasetError

LABELS = np.arange(35, dtype=np.uint8).reshape(5, 7)
OTHERS = {"names": np.array(["a", "bb"], object), "captions": np.zeros((3, 40, 2)), "S": LABELS}


def save(folder: Path, values: dict[str, Any] | None = None, **options: Any) -> Path:
    file = folder / "a.mat"
    savemat(file, OTHERS if values is None else values, **options)
    return file


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float64, bool])
def test_values_come_as_they_are_stored(tmp_path: Path, dtype: Any, packed: bool) -> None:
    expected = LABELS.astype(dtype)
    found = read_labels(save(tmp_path, {**OTHERS, "S": expected}, do_compression=packed))
    assert found.dtype.kind in "iu"
    assert np.array_equal(found, expected)


def test_a_folder_of_them_is_a_data_set(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (7, 5)).save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "labels", {"S": (LABELS % 3).astype(np.uint8)})
    config = folder_config(tmp_path, label_suffix=".mat", ignore=[0], label_offset=1)
    dataset = build_dataset(config, "train")
    assert dataset.info.num_classes == 2
    assert np.array_equal(dataset[0].semantic_map().numpy(), LABELS.astype(int) % 3 - 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": LABELS}, "no variable S with the labels; its variables: labels"),
        ({"S": np.zeros((2, 3, 4))}, r"has the size \[2, 3, 4\], expected numbers \[H, W\]"),
        ({"S": np.zeros((0, 3))}, r"has the size \[0, 3\]"),
        ({"S": LABELS + 0.5}, "is float64, expected whole numbers"),
        ({"S": LABELS * 1j}, "does not hold real numbers"),
        ({"S": OTHERS["names"]}, "does not hold real numbers"),
        ({"S": "text"}, "does not hold real numbers"),
    ],
)
def test_other_contents_are_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    file = save(tmp_path, values)
    with pytest.raises(DatasetError, match=message) as caught:
        read_labels(file)
    assert str(file) in str(caught.value)


def test_colours_and_too_many_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"keys of data\.label_map are colours"):
        read_labels(save(tmp_path), colors=True)
    with pytest.raises(DatasetError, match=r"35 pixels, more than data\.max_pixels: 34"):
        read_labels(save(tmp_path), max_pixels=34)


def test_a_few_bytes_do_not_become_gigabytes(tmp_path: Path) -> None:
    """A packed variable that would unpack to far more than the map that it announces."""
    raw = save(tmp_path, {"S": LABELS}).read_bytes()
    packed = zlib.compress(raw[128:] + bytes(20_000_000), 9)
    (tmp_path / "a.mat").write_bytes(raw[:128] + struct.pack("<2I", 15, len(packed)) + packed)
    assert np.array_equal(read_labels(tmp_path / "a.mat", max_pixels=35), LABELS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((1000, 1000, 20), np.uint8), r"the size \[1000, 1000, 20\]"),
        (np.zeros((1000, 4000), np.complex64), "does not hold real numbers"),
        (np.zeros((4000, 5000), np.uint8), "20000000 pixels, more than"),
    ],
)
def test_what_is_refused_is_not_unpacked(tmp_path: Path, values: Any, message: str) -> None:
    file = save(tmp_path, {"S": values}, do_compression=True)
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=message):
            read_labels(file, max_pixels=19_999_999)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_packed_map_takes_no_more_than_it_announces(tmp_path: Path) -> None:
    raw = save(tmp_path, {"S": LABELS}).read_bytes()
    packed = zlib.compress(raw[128:] + bytes(20_000_000), 9)
    (tmp_path / "a.mat").write_bytes(raw[:128] + struct.pack("<2I", 15, len(packed)) + packed)
    tracemalloc.start()
    try:
        assert np.array_equal(read_labels(tmp_path / "a.mat"), LABELS)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files_end_in_an_error(tmp_path: Path, packed: bool) -> None:
    """SciPy's reader crashes on some of these."""
    raw, draw = save(tmp_path, do_compression=packed).read_bytes(), random.Random(0)
    errors = []
    for _ in range(100):
        damaged = bytearray(raw)
        for _ in range(draw.randint(1, 6)):
            damaged[draw.randrange(124, len(raw))] = draw.randrange(256)
        (tmp_path / "b.mat").write_bytes(damaged[: draw.choice([len(raw), draw.randrange(200)])])
        try:
            read_labels(tmp_path / "b.mat")
        except DatasetError as error:
            errors.append(str(error))
    assert len(errors) > 50
    assert all("b.mat" in error for error in errors)


def test_version_7_3_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512))
    with pytest.raises(DatasetError, match="pip install h5py"):
        read_labels(tmp_path / "a.mat")


def test_version_7_3_is_read(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["S"] = LABELS.T
    assert np.array_equal(read_labels(tmp_path / "a.mat"), LABELS)
    with h5py.File(tmp_path / "b.mat", "w") as file:
        file["S"] = h5py.ExternalLink("a.mat", "S")
    with pytest.raises(DatasetError, match="no variable S"):
        read_labels(tmp_path / "b.mat")
