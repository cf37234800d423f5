"""Finding pairs of folders: one with images, one with a file of a similar name for each image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath

from maskformer.data.pairing import ANY, IMAGE_SUFFIXES
from maskformer.data.sample import evenly_spread

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".qoi", ".tga")
"""Suffixes of lossless formats."""
MAX_FOLDERS = 300
SAMPLE = 20
SHARE = 0.8
"""The fraction of the sampled files that must have a partner."""


@dataclass(frozen=True)
class Pair:
    """Two folders whose files belong together.

    Attributes:
        images, partners: the folders, relative to the data root.
        image_suffix, partner_suffix: the ends of names after their common start; `"*"` stands for
            the suffix of any image format.
        count: the approximate number of images.
    """

    images: str
    partners: str
    image_suffix: str
    partner_suffix: str
    count: int

    def has_image(self, name: str) -> bool:
        """Whether a file in `images` is one of the images."""
        return self.image_suffix == ANY or name.endswith(self.image_suffix)

    def partner(self, image: str) -> str:
        """Return the name of an image's partner, both relative to their folders."""
        if self.image_suffix == ANY:
            return image.rpartition(".")[0] + self.partner_suffix
        return image.removesuffix(self.image_suffix) + self.partner_suffix


Folders = dict[str, list[str]]
"""All image files below each folder, relative to it."""


def image_folders(files: Sequence[str]) -> tuple[Folders, int]:
    """Find the folders that contain images, directly or in subfolders, and count them. If there
    are more than `MAX_FOLDERS`, only the topmost are returned.

    Args:
        files: sorted paths, relative to the data root.
    """
    folders: Folders = defaultdict(list)
    for file in files:
        path = PurePosixPath(file)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        for parent in path.parents:
            folders[str(parent)].append(path.relative_to(parent).as_posix())
    count = len(folders)
    if count > MAX_FOLDERS:
        upper = sorted(folders, key=lambda name: (name.count("/"), name))[:MAX_FOLDERS]
        folders = {name: folders[name] for name in upper}
    return dict(folders), count


def pairs(folders: Folders) -> list[Pair]:
    """Find all pairs of folders in which most files of the first have a partner in the second."""
    stems = _by_stem(folders)
    found = []
    for images, names in folders.items():
        sample = [names[index] for index in evenly_spread(len(names), SAMPLE)]
        matches: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        for name in sample:
            for folder, own, suffixes in _matches(name, stems):
                kind = own if folder == images else _kind(own)
                matches[folder].update((kind, suffix) for suffix in suffixes)
        for folder in folders:
            for (image_suffix, suffix), count in matches[folder].items():
                pair = Pair(images, folder, image_suffix, suffix, len(names))
                if images != folder and count >= SHARE * len(sample):
                    found.append(pair)
                elif images == folder and image_suffix != suffix:
                    alike = sum(name.endswith(image_suffix) for name in sample)
                    if count >= max(SHARE * alike, (1 - SHARE) * len(sample)):
                        found.append(replace(pair, count=len(names) * alike // len(sample)))
    return found


def _kind(suffix: str) -> str:
    return ANY if suffix.lower() in IMAGE_SUFFIXES else suffix


def _by_stem(folders: Folders) -> dict[str, dict[str, list[str]]]:
    """Map each possible stem to the suffixes with which it occurs in each folder."""
    stems: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder, names in folders.items():
        for name in names:
            for stem, suffix in _splits(name):
                stems[stem][folder].append(suffix)
    return stems


def _matches(
    name: str, stems: dict[str, dict[str, list[str]]]
) -> Iterator[tuple[str, str, list[str]]]:
    """Yield for each folder with files of a common stem the folder, the suffix of `name` after the
    longest such stem, and the suffixes of those files, an equal one first.
    """
    done: set[str] = set()
    for stem, own in _splits(name):
        for folder, suffixes in stems.get(stem, {}).items():
            if folder not in done:
                done.add(folder)
                yield folder, own, sorted(dict.fromkeys(suffixes), key=lambda other: other != own)


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Split a path into stem and suffix before each dot, dash and underscore in the file name, the
    longest stem first.
    """
    start = name.rfind("/") + 1
    cuts = [k for k in range(start + 1, len(name)) if name[k] in "._-"]
    # "a_.png" is not split into "a" and "_.png": a word must follow the first character.
    cuts = [k for k, after in pairwise([*cuts, len(name)]) if after > k + 1]
    for cut in reversed(cuts):
        yield name[:cut], name[cut:]
