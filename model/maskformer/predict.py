"""Segments images that have no ground truth, and writes what people and programs want to read."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from maskformer.config.choices import Mode
from maskformer.config.schema import Config
from maskformer.data import DatasetInfo
from maskformer.data.image_files.reader import ImageReader
from maskformer.data.pairing import IMAGE_SUFFIXES, left_out
from maskformer.data.sample import Sample
from maskformer.errors import DatasetError, OutputError, UsageError
from maskformer.modeling.base import SegmentationModel
from maskformer.output.console import Progress
from maskformer.output.output_folder import check_output_folder
from maskformer.output.picture_writer import PictureWriter
from maskformer.output.result_writer import ResultWriter
from maskformer.predictor import Predictor
from maskformer.system.listing import list_files, list_folder
from maskformer.system.paths import OutputNames, find_input_in, folders_and_links_of, image_ids
from maskformer.system.text import escape


def find_images(
    patterns: Sequence[str], out: Path | None = None, note: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Image files named by files, folders (all images below them) and glob patterns, in order.

    Folders, and patterns with `**`, follow the rules of `system.listing`, as training does: hidden
    names are left out, links are followed, every folder is read once.

    Args:
        patterns: as on the command line.
        out: where results go. What folders and patterns find in it comes from an earlier run and
            is left out.
        note: told what else is in a folder, and is not taken.

    Raises:
        DatasetError: a pattern that stands for nothing.
    """
    files: dict[tuple[str, str], Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        found = [path] if path.is_file() else _outside(_expand(pattern), out)
        if not found:
            raise DatasetError(_nothing_found(pattern, out))
        if path.is_dir() and (passed_over := _left_out(path)):
            note(passed_over)
        for file in found:
            # The same file under another name of its folder is not predicted twice.
            files.setdefault((os.path.realpath(file.parent), file.name), file)
    return list(files.values())


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _left_out(folder: Path) -> str:
    listing = list_folder(folder)
    return left_out(folder, listing, [name for name in listing.files if not _is_image(name)])


def _expand(pattern: str) -> list[Path]:
    """What a folder or a pattern stands for, sorted."""
    path = Path(pattern)
    if path.is_dir():
        return [path / name for name in list_files(path) if _is_image(name)]
    if "**" not in path.parts:
        names = glob.glob(pattern)  # noqa: PTH207 (absolute patterns too)
        return sorted(file for file in map(Path, names) if not file.is_dir())
    # The `**` of `glob` never returns from two links that lead back.
    first = path.parts.index("**")
    tops = glob.glob(str(Path(*path.parts[:first])))  # noqa: PTH207
    return [
        Path(top, name)
        for top in sorted(tops)
        if Path(top).is_dir()
        for name in list_files(Path(top))
        if _matches(name.split("/"), path.parts[first:])
    ]


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path fit those of a pattern, where `**` is any number of folders."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        rest = patterns[1:] or ["*"]
        return any(_matches(names[start:], rest) for start in range(len(names)))
    return (
        bool(names)
        and fnmatch.fnmatchcase(names[0], patterns[0])
        and _matches(names[1:], patterns[1:])
    )


def _outside(files: Iterable[Path], out: Path | None) -> list[Path]:
    if out is None:
        return list(files)
    results = os.path.realpath(out)
    return [file for file in files if Path(results) not in Path(os.path.realpath(file)).parents]


def _nothing_found(pattern: str, out: Path | None) -> str:
    message = f"no image at '{pattern}': expected a file, a folder or a pattern"
    results = len(_expand(pattern))
    if results:
        return f"{message}; all {results} lie in --out {out}, where results go"
    if not Path(pattern).is_dir():
        return message
    suffixes = Counter(Path(name).suffix or "no suffix" for name in list_files(Path(pattern)))
    listing = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(4))
    return (
        f"{message}; the folder holds {listing or 'no file'}, and images are "
        f"{', '.join(sorted(IMAGE_SUFFIXES))}"
    )


def predict_images(
    model: SegmentationModel,
    files: Sequence[Path],
    config: Config,
    info: DatasetInfo,
    out: Path,
    *,
    mode: Mode,
    progress: Progress,
    tta: bool = False,
) -> int:
    """Writes `NAME.png` (overlay and legend; large ones `NAME.jpg`) for each image, what
    `ResultWriter` writes, and `files.json`: which image each NAME stands for.

    An image that cannot be read is reported and left out. In the JSON files an image's id is its
    name, as a number where it is one that no other name is too (COCO's custom). `out` is made for
    the first result.

    Args:
        model: on its device.
        config: thresholds, sizes, views, tiles and pictures; its `eval.semantic` and
            `eval.panoptic` do not count.
        info: classes of the model.
        mode: what to predict; `"instance"` draws what scores above `eval.object_mask_threshold`
            and writes all.
        tta: average the class scores over the views of `eval.tta`.

    Returns:
        The number of images left out.

    Raises:
        OSError: `out` cannot be written.
        OutputError: `out` is or holds the folder of an image.
        UsageError: model, classes, test-time augmentation, tiles and mode do not go together.
    """
    _check_mode(mode, tta, config.predict.tile)
    check_output_folder(out)
    _check_beside_images(out, files)
    names = _output_names(files)
    predict = Predictor(model, config, info, mode=mode, tta=tta, progress=progress)
    reader = ImageReader.from_config(config.data)
    failures = 0
    with (
        progress.counting("predicting", len(files)) as counter,
        ResultWriter(out, info) as results,
        PictureWriter(out, info, config) as pictures,
    ):
        for file, name, image_id in zip(files, names, image_ids(names), strict=True):
            try:
                sample = _load(file, reader)
                prediction = predict(sample)
            except DatasetError as error:
                progress.warn(str(error))
                failures += 1
            else:
                if name != file.stem:
                    progress.print(f"{file}: its results are named {name}")
                pictures.add(name, file, sample.image, prediction)
                results.add(name, image_id, prediction, file.name)
            counter.advance(1)
    return failures


def _check_mode(mode: Mode, tta: bool, tile: int | None) -> None:
    """Refuses what cannot be averaged, and two ways of averaging at once."""
    if tta and mode != "semantic":
        raise UsageError(
            f"test-time augmentation averages class scores, expected mode 'semantic', got '{mode}'"
        )
    if tile is not None and mode != "semantic":
        raise UsageError(
            f"predict.tile={tile} joins the class scores of tiles, expected mode 'semantic', got "
            f"'{mode}': segments of different tiles have no common score; leave it out, or predict "
            "with --mode semantic"
        )
    if tile is not None and tta:
        raise UsageError(f"predict.tile={tile} and --tta do not go together: leave one of them out")


def _load(file: Path, reader: ImageReader) -> Sample:
    image = reader(file)
    nothing = torch.zeros(0)
    return Sample(
        image=image,
        segments=torch.full(image.shape[-2:], -1, dtype=torch.int32),
        labels=nothing.long(),
        crowd=nothing.bool(),
        name=file.name,
    )


def _check_beside_images(out: Path, files: Sequence[Path]) -> None:
    found = find_input_in(out, folders_and_links_of(files))
    if found is not None:
        file = next(file for file in files if found in (file, file.parent))
        raise OutputError(
            f"{escape(file)} is one of the images, and the output folder {escape(out)} holds it, "
            "so that results could overwrite images: choose another --out"
        )


def _output_names(files: Sequence[Path]) -> list[str]:
    """File stems that can be names in one folder, numbered where several images share one."""
    names = OutputNames()
    return [names.take(file.stem) for file in files]
