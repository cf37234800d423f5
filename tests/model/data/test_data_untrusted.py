"""Images, labels, JSON and text of unknown origin: an error that names the file, or a result."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.hostile.images import SPECIAL, contents, encoded, eps, png, write_special
from PIL import EpsImagePlugin, Image

from maskformer import ImageProcessor
from maskformer.config.schema import FolderConfig, SemanticAugmentation
from maskformer.data import (
    EvalLoader,
    TrainLoader,
    TrainTransform,
    build_dataset,
    check_dataset,
)
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.label_reader import read_labels, read_segment_ids
from maskformer.errors import DatasetError
from maskformer.system.reading import open_regular, read_json, read_regular

Reader = Callable[[Path], Any]
CONTENTS = contents()
READERS = [ImageReader(), read_labels, read_segment_ids]

pytestmark = [
    pytest.mark.timeout(20),
    # Pillow warns of images that are odd or large; here they all are.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning"),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", CONTENTS)
def test_broken_content(tmp_path: Path, case: str, reader: Reader) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(CONTENTS[case])
    try:
        pixels = reader(file)
    except DatasetError as error:
        said = str(error)
    else:
        assert 0 not in pixels.shape  # some damage leaves an image
        return
    assert str(file) in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", SPECIAL)
def test_no_regular_file(tmp_path: Path, case: str, reader: Reader) -> None:
    write_special(tmp_path / "x.png", case)
    said = "does not exist" if case == "link to nothing" else "cannot be read"
    with pytest.raises(DatasetError, match=rf"x\.png {said}"):
        reader(tmp_path / "x.png")


@pytest.mark.parametrize("reader", [*READERS, lambda file: ImageProcessor()(file)])
def test_no_program_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Reader
) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("it was"))
    (tmp_path / "x.jpg").write_bytes(eps("(%pipe%touch broken) (w) file"))
    with pytest.raises(
        DatasetError, match=r"x\.jpg cannot be read \(its content is none of JPEG, "
    ):
        reader(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("deep"), ZeroDivisionError("division by zero"), RuntimeError("AVIF\nfailed"),
        SyntaxError("PNG"), OverflowError("large"), EOFError(), MemoryError(), IndexError("9"),
        KeyError("mode"), TypeError("no"), AttributeError("no"), AssertionError(), OSError("disk"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_decoder_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (tmp_path / "x.png").write_bytes(encoded("PNG"))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(
        DatasetError, match=r"^image file .*x\.png cannot be read \(.+\).*remove it$"
    ):
        ImageReader()(tmp_path / "x.png")


def test_all_formats_are_read(tmp_path: Path) -> None:
    kinds = {"JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "QOI", "TGA"}
    Image.init()
    for kind in kinds & Image.SAVE.keys():  # older Pillows read QOI and do not write it
        (tmp_path / "x.any").write_bytes(encoded(kind))
        assert ImageReader()(tmp_path / "x.any").shape == (3, 24, 40)
    frames = [Image.new("RGB", (5, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    for suffix in ("gif", "png", "tif", "webp"):
        file = tmp_path / f"several.{suffix}"
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(file, save_all=True, append_images=frames[1:], **options)
        assert ImageReader()(file)[:, 0, 0].tolist() == [255, 0, 0]  # the first of them


def test_narrow_images_stay_small(tmp_path: Path) -> None:
    file = tmp_path / "narrow.png"
    Image.new("RGB", (65_500, 1)).save(file)
    processed = ImageProcessor(short_side=512, max_side=2048)(file)
    assert processed["pixel_values"].shape == (1, 3, 32, 2048)
    with pytest.raises(
        DatasetError, match=r"65500x1 pixels would become 33536000x512 with a short"
    ):
        ImageProcessor(short_side=512, max_side=None)(file)
    Image.new("L", (1, 1)).save(file)
    assert ImageReader()(file).shape == (3, 1, 1)


def test_narrow_images_are_named(tmp_path: Path) -> None:
    config = folder(tmp_path)
    Image.new("RGB", (65_500, 1)).save(tmp_path / "images" / "a.jpg")
    Image.new("L", (65_500, 1)).save(tmp_path / "labels" / "a.png")
    data = build_dataset(config, "train")
    said = "image a: 65500x1 pixels would become 33536000x512"
    with pytest.raises(DatasetError, match=said):
        next(iter(EvalLoader(data, ImageProcessor(512, None).batch, workers=1)))
    with pytest.raises(DatasetError, match=said):
        next(iter(TrainLoader(data, TrainTransform(SemanticAugmentation()), 1, seed=0)))


def test_messages_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a\nerror: \x1b[2J.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"a\\x0aerror: \\x1b\[2J\.png cannot be read"):
        ImageReader()(tmp_path / "a\nerror: \x1b[2J.png")


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"annotations": [{"id": 1, "category_id": 1}, {"category_id": 1, "id": 2}]}')
    assert read_json(file)["annotations"][1] == {"category_id": 1, "id": 2}
    file.write_text('{"annotations": [{"category_id": 1, "id": 3, "category_id": 2}]}')
    with pytest.raises(ValueError, match="the key 'category_id' occurs twice in one object"):
        read_json(file)


def test_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(encoded("PNG"))
    os.truncate(file, 2**40)  # no block of it is on disk
    with pytest.raises(DatasetError, match=r"it has 1,099,511,627,776 bytes, expected at most"):
        ImageReader()(file)
    with pytest.raises(OSError, match="expected at most"):
        read_json(file)
    file.write_bytes(png(30_000, 30_000))
    with pytest.raises(DatasetError, match=r"900000000 pixels"):
        ImageReader()(file)


def test_regular_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("x")
    assert read_regular(tmp_path / "link", 3) == b"abc"
    with pytest.raises(OSError, match="it has 3 bytes, expected at most 2"):
        open_regular(tmp_path / "x", 2)
    with pytest.raises(OSError, match="it is a folder, expected a regular file"):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="bytes, expected at most 4"):
        read_regular(Path("/proc/self/status"), 4)  # says that it is empty
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "y")


def folder(root: Path, **settings: Any) -> FolderConfig:
    split = {"images": "images", "labels": "labels"}
    for name, size in (("images/a.jpg", (6, 4)), ("labels/a.png", (6, 4))):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("L", size).save(root / name)
    values = {"root": root, "train": split, "val": split, "classes": ("a",)} | settings
    return FolderConfig(**values)


@pytest.mark.parametrize("name", ["images/a.jpg", "labels/a.png"])
@pytest.mark.parametrize("case", SPECIAL)
def test_the_doctor_names_what_is_no_file(tmp_path: Path, name: str, case: str) -> None:
    config = folder(tmp_path)
    (tmp_path / name).unlink()
    write_special(tmp_path / name, case)
    with pytest.raises(DatasetError) as caught:
        check_dataset(build_dataset(config, "train"))
    assert str(tmp_path / Path(name).parent) in str(caught.value)


@pytest.mark.parametrize("case", ["pipe", "folder", "endless device", "latin", "large"])
def test_class_names(tmp_path: Path, case: str) -> None:
    file = tmp_path / "names.txt"
    if case == "latin":
        file.write_bytes("Straße".encode("cp1252"))
    elif case == "large":
        file.touch()
        os.truncate(file, 2**40)
    else:
        write_special(file, case)
    with pytest.raises(DatasetError, match=r"^data\.classes: .*names\.txt"):
        build_dataset(folder(tmp_path, classes="names.txt"), "train")
