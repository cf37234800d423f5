"""A generated data set, which needs no download: textured ground with simple objects on it.

Colour, texture and shape are all related to the class, but none of them determines it: light and
hue vary, some objects have a random hue, objects occlude each other, areas are unlabelled, and a
few images have no object or no segment at all. Image `i` of a split depends only on the seed, the
split and `i`.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from maskformer.config.schema import ShapesConfig
from maskformer.data.sample import DatasetInfo, Sample, Split, check_index
from maskformer.errors import DatasetError

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

THINGS = ("disc", "square", "triangle", "star", "cross")
STUFF = ("sky", "grass", "water", "sand")

INFO = DatasetInfo(
    classes=THINGS + STUFF,
    things=frozenset(range(len(THINGS))),
    colors=(
        (220, 50, 47),
        (245, 150, 40),
        (150, 80, 200),
        (60, 215, 195),
        (230, 90, 170),
        (135, 190, 240),
        (85, 160, 60),
        (40, 95, 160),
        (205, 180, 130),
    ),
    category_ids=tuple(range(1, 10)),
)

EMPTY_SHARE = 0.03
STUFF_ONLY_SHARE = 0.07
VOID_SHARE = 0.35
CROWD_SHARE = 0.05
RANDOM_HUE_SHARE = 0.2
HUES = (0.0, 0.1, 0.76, 0.47, 0.89)
"""The usual hue of each thing, as a fraction of the colour circle."""


class Shapes:
    """Generated panoptic images of the size `config.image_size`.

    Args:
        config: the size, the number of images and the seed.
        split: the split; `train` and `val` have no image in common.

    Raises:
        DatasetError: `config.channels` is not 3.
    """

    info = INFO

    def __init__(self, config: ShapesConfig, split: Split) -> None:
        if config.channels != 3:
            raise DatasetError(
                f"data.channels is {config.channels}, but data.format: shapes draws RGB; expected 3"
            )
        self._size = config.image_size
        self._length = config.train_images if split == "train" else config.val_images
        self._split = split
        self._entropy = (config.seed, 0 if split == "train" else 1)

    @property
    def num_images(self) -> int:
        return self._length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        index = check_index(index, self._length)
        canvas = _draw(np.random.default_rng((*self._entropy, index)), *self._size)
        segments, labels, crowd = canvas.visible_segments()
        image = np.ascontiguousarray(canvas.image.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
        return Sample(
            image=torch.from_numpy(image),
            segments=torch.from_numpy(segments),
            labels=torch.tensor(labels, dtype=torch.int64),
            crowd=torch.tensor(crowd, dtype=torch.bool),
            name=f"{self._split}-{index:06d}",
        )


@dataclass
class _Canvas:
    """The image and segments drawn so far; later objects occlude earlier ones."""

    y: Array
    x: Array
    grain: Array
    image: Array
    segments: NDArray[np.int32]
    labels: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)

    def add(self, name: str, crowd: bool = False) -> int:
        self.labels.append(INFO.classes.index(name))
        self.crowd.append(crowd)
        return len(self.labels) - 1

    def visible_segments(self) -> tuple[NDArray[np.int32], list[int], list[bool]]:
        """Return segments, labels and crowd flags without the segments that are fully occluded."""
        count = len(self.labels)
        seen = np.bincount(self.segments.ravel() + 1, minlength=count + 1)[1:] > 0
        table = np.append(np.where(seen, np.cumsum(seen) - 1, -1), -1).astype(np.int32)
        labels = [label for label, keep in zip(self.labels, seen, strict=True) if keep]
        crowd = [flag for flag, keep in zip(self.crowd, seen, strict=True) if keep]
        return table[self.segments], labels, crowd


def _draw(rng: np.random.Generator, height: int, width: int) -> _Canvas:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    side = np.float32(min(height, width))
    canvas = _Canvas(
        y=y / side,
        x=x / side,
        grain=rng.random((height, width), dtype=np.float32) - np.float32(0.5),
        image=np.empty((height, width, 3), np.float32),
        segments=np.full((height, width), -1, np.int32),
    )
    kind = rng.random()
    if kind < EMPTY_SHARE:
        everywhere = np.ones((height, width), bool)
        canvas.image[everywhere] = _fog(rng, canvas, everywhere)
    else:
        _paint_ground(rng, canvas)
        if kind >= EMPTY_SHARE + STUFF_ONLY_SHARE:
            _paint_things(rng, canvas)
        if rng.random() < VOID_SHARE:
            _paint_void(rng, canvas)
    light = rng.uniform(0.75, 1.2) * rng.uniform(0.92, 1.08, 3)
    canvas.image *= light.astype(np.float32)
    canvas.image += (10 * canvas.grain[::-1, ::-1])[..., None]
    return canvas


def _paint_ground(rng: np.random.Generator, canvas: _Canvas) -> None:
    """Paint one to three kinds of stuff, separated by wavy lines."""
    y, x = canvas.y, canvas.x
    grounds = [str(name) for name in rng.permutation(STUFF[1:])]
    horizon = _wave(rng, x) + rng.uniform(0.2, 0.6) * float(y[-1, 0])
    has_sky = rng.random() < 0.7
    if has_sky:
        _fill(rng, canvas, "sky", y < horizon)
    ground = y >= horizon if has_sky else np.ones(y.shape, bool)
    if rng.random() < 0.6:
        angle = rng.uniform(-0.8, 0.8)
        across = x * np.float32(np.cos(angle)) + (y - horizon) * np.float32(np.sin(angle))
        left = across < _wave(rng, y) + rng.uniform(0.25, 0.75) * float(x[0, -1])
        _fill(rng, canvas, grounds[0], ground & left)
        _fill(rng, canvas, grounds[1], ground & ~left)
    else:
        _fill(rng, canvas, grounds[0], ground)


def _wave(rng: np.random.Generator, t: Array) -> Array:
    frequency, phase, height = rng.uniform(3, 9), rng.uniform(0, 6.3), rng.uniform(0.01, 0.06)
    wave: Array = np.float32(height) * np.sin(np.float32(frequency) * t + np.float32(phase))
    return wave


def _fill(rng: np.random.Generator, canvas: _Canvas, name: str, where: Mask) -> None:
    canvas.image[where] = _TEXTURES[name](rng, canvas, where)
    canvas.segments[where] = canvas.add(name)


def _shade(
    rng: np.random.Generator, base: tuple[int, int, int], spread: float, light: Array
) -> Array:
    color = np.asarray(base, np.float32) + rng.uniform(-spread, spread, 3).astype(np.float32)
    shaded: Array = color + light[:, None]
    return shaded


def _sky(rng: np.random.Generator, canvas: _Canvas, where: Mask) -> Array:
    y, x = canvas.y[where], canvas.x[where]
    clouds = np.sin(5 * x + np.float32(rng.uniform(0, 6))) * np.sin(
        9 * y + 2 * x + np.float32(rng.uniform(0, 6))
    )
    return _shade(rng, (130, 175, 225), 18, 45 * y + 35 * np.maximum(clouds - 0.3, 0))


def _grass(rng: np.random.Generator, canvas: _Canvas, where: Mask) -> Array:
    blades = np.sin(np.float32(rng.uniform(70, 110)) * canvas.x[where]) * canvas.grain[where]
    return _shade(rng, (85, 140, 60), 18, 30 * blades + 60 * canvas.grain[where])


def _water(rng: np.random.Generator, canvas: _Canvas, where: Mask) -> Array:
    y, x = canvas.y[where], canvas.x[where]
    ripples = np.sin(
        np.float32(rng.uniform(45, 75)) * y + 2 * np.sin(np.float32(rng.uniform(4, 9)) * x)
    )
    return _shade(rng, (60, 110, 160), 18, 16 * ripples)


def _sand(rng: np.random.Generator, canvas: _Canvas, where: Mask) -> Array:
    grain = canvas.grain[where]
    return _shade(rng, (200, 175, 125), 18, 20 * grain - 45 * (grain > 0.46))


def _fog(rng: np.random.Generator, canvas: _Canvas, where: Mask) -> Array:
    """The texture of unlabelled pixels: grey smears."""
    smear = np.sin(np.float32(rng.uniform(8, 20)) * (canvas.x[where] + canvas.y[where]))
    gray = int(rng.integers(70, 170))
    return _shade(rng, (gray, gray, gray), 8, 22 * smear + 30 * canvas.grain[where])


_TEXTURES: dict[str, Callable[[np.random.Generator, _Canvas, Mask], Array]] = {
    "sky": _sky,
    "grass": _grass,
    "water": _water,
    "sand": _sand,
}


def _paint_void(rng: np.random.Generator, canvas: _Canvas) -> None:
    """Paint a band of unlabelled pixels."""
    angle = rng.uniform(0, 3.2)
    across = canvas.x * np.float32(np.cos(angle)) + canvas.y * np.float32(np.sin(angle))
    low, high = float(across.min()), float(across.max())
    start = rng.uniform(low, high)
    where = np.abs(across - start + _wave(rng, canvas.y)) < (high - low) * rng.uniform(0.02, 0.07)
    canvas.image[where] = _fog(rng, canvas, where)
    canvas.segments[where] = -1


def _paint_things(rng: np.random.Generator, canvas: _Canvas) -> None:
    if rng.random() < CROWD_SHARE:
        _paint_crowd(rng, canvas)
    for _ in range(int(rng.integers(1, 7))):
        name = THINGS[int(rng.integers(len(THINGS)))]
        radius = float(np.exp(rng.uniform(np.log(0.055), np.log(0.25))))
        center = rng.uniform(0, 1, 2) * (canvas.y[-1, 0], canvas.x[0, -1])
        _paint_thing(rng, canvas, name, center, radius, canvas.add(name))


def _paint_crowd(rng: np.random.Generator, canvas: _Canvas) -> None:
    """Paint many small objects that form one segment."""
    name = THINGS[int(rng.integers(len(THINGS)))]
    segment = canvas.add(name, crowd=True)
    middle = rng.uniform(0.2, 0.8, 2) * (canvas.y[-1, 0], canvas.x[0, -1])
    for _ in range(12):
        center = middle + rng.normal(0, 0.1, 2)
        _paint_thing(rng, canvas, name, center, float(rng.uniform(0.03, 0.05)), segment)


def _paint_thing(
    rng: np.random.Generator,
    canvas: _Canvas,
    name: str,
    center: NDArray[np.float64],
    radius: float,
    segment: int,
) -> None:
    side = min(canvas.segments.shape)
    top, left = (max(int((c - radius) * side), 0) for c in center)
    bottom, right = (max(int((c + radius) * side) + 2, 0) for c in center)
    box = np.s_[top:bottom, left:right]
    angle = rng.uniform(0, 6.3)
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    y, x = canvas.y[box] - np.float32(center[0]), canvas.x[box] - np.float32(center[1])
    u, v = cos * x + sin * y, cos * y - sin * x
    inside, pattern = _SHAPES[name](u, v)
    light = 25 * pattern - 18 * (u + v) + 24 * canvas.grain[box]
    canvas.image[box][inside] = _thing_color(rng, name) + light[inside][:, None]
    canvas.segments[box][inside] = segment


def _thing_color(rng: np.random.Generator, name: str) -> Array:
    hue = HUES[THINGS.index(name)] + rng.normal(0, 0.025)
    if rng.random() < RANDOM_HUE_SHARE:
        hue = rng.random()
    rgb = colorsys.hsv_to_rgb(
        float(hue) % 1, float(rng.uniform(0.6, 0.95)), float(rng.uniform(0.6, 0.95))
    )
    return 255 * np.asarray(rgb, np.float32)


def _disc(u: Array, v: Array) -> tuple[Mask, Array]:
    square = u * u + v * v
    return square < 0.95, 1 - 2 * square


def _square(u: Array, v: Array) -> tuple[Mask, Array]:
    return np.maximum(np.abs(u), np.abs(v)) < 0.75, np.sign(np.sin(11 * u))


def _triangle(u: Array, v: Array) -> tuple[Mask, Array]:
    slope = np.float32(0.866) * np.abs(u)
    return (v < 0.5) & (slope - 0.5 * v < 0.5), 0.5 - v


def _star(u: Array, v: Array) -> tuple[Mask, Array]:
    distance = np.hypot(u, v)
    reach: Array = 0.64 + 0.34 * np.cos(5 * np.arctan2(v, u))
    return distance < reach, np.float32(1.2) - 2 * distance


def _cross(u: Array, v: Array) -> tuple[Mask, Array]:
    thin, long = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return (thin < 0.3) & (long < 0.95), 1 - 5 * thin


_SHAPES: dict[str, Callable[[Array, Array], tuple[Mask, Array]]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}
