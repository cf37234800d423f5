"""Names and shapes in the authors' checkpoints, taken from their files and not from our tables."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shapes = dict[str, tuple[int, ...]]
State = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Official:
    """The configuration of an official model; the defaults describe a small one."""

    head: str = "maskformer"
    swin: bool = False
    deep_stem: bool = False
    depths: tuple[int, ...] = (1, 2, 1, 1)
    channels: tuple[int, ...] = (32, 48, 64, 96)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    window: int = 4
    encoder_layers: int = 0
    pixel_channels: int = 64
    mask_channels: int = 24
    width: int = 32
    feedforward: int = 40
    layers: int = 2
    queries: int = 9
    classes: int = 7

    def shapes(self) -> Shapes:
        """The shape of every entry, by its name in the new layout."""
        return dict([*self._backbone(), *self._pixel_decoder(), *self._predictor()])

    def state(self, zoo: bool) -> State:
        """A state dictionary of random values; `zoo` selects the model zoo's old names."""
        rng = np.random.default_rng(0)
        return {
            (name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.") if zoo else name): (
                self._index()
                if name.endswith("relative_position_index")
                else self._empty_weight()
                if name == "criterion.empty_weight"
                else (rng.uniform(0.5, 1.5, shape) / math.prod(shape[1:])).astype(np.float32)
            )
            for name, shape in self.shapes().items()
        }

    def _empty_weight(self) -> NDArray[Any]:
        return np.array([1.0] * self.classes + [0.1], np.float32)

    def _index(self) -> NDArray[Any]:
        window = self.window
        cells = [(y, x) for y in range(window) for x in range(window)]
        rows = [
            [(y - v + window - 1) * (2 * window - 1) + (x - u + window - 1) for v, u in cells]
            for y, x in cells
        ]
        return np.array(rows, np.int64)

    def _backbone(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from self._swin() if self.swin else self._resnet()

    def _resnet(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        def conv(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
            yield f"backbone.{name}.weight", shape
            for part in ("weight", "bias", "running_mean", "running_var"):
                yield f"backbone.{name}.norm.{part}", shape[:1]

        if self.deep_stem:
            yield from conv("stem.conv1", 64, 3, 3, 3)
            yield from conv("stem.conv2", 64, 64, 3, 3)
            yield from conv("stem.conv3", 128, 64, 3, 3)
        else:
            yield from conv("stem.conv1", 64, 3, 7, 7)
        before = 128 if self.deep_stem else 64
        for stage, (depth, after) in enumerate(zip(self.depths, self.channels, strict=True), 2):
            middle = after // 4
            for block in range(depth):
                name = f"res{stage}.{block}"
                if block == 0:
                    yield from conv(f"{name}.shortcut", after, before, 1, 1)
                yield from conv(f"{name}.conv1", middle, before, 1, 1)
                yield from conv(f"{name}.conv2", middle, middle, 3, 3)
                yield from conv(f"{name}.conv3", after, middle, 1, 1)
                before = after

    def _swin(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        def pair(name: str, out: int, *rest: int) -> Iterator[tuple[str, tuple[int, ...]]]:
            yield f"backbone.{name}.weight", (out, *rest)
            yield f"backbone.{name}.bias", (out,)

        yield from pair("patch_embed.proj", self.channels[0], 3, 4, 4)
        yield from pair("patch_embed.norm", self.channels[0])
        table = (2 * self.window - 1) ** 2
        for stage, (depth, c) in enumerate(zip(self.depths, self.channels, strict=True)):
            for block in range(depth):
                name = f"layers.{stage}.blocks.{block}"
                yield from pair(f"{name}.norm1", c)
                bias = f"backbone.{name}.attn.relative_position_"
                yield f"{bias}bias_table", (table, self.heads[stage])
                yield f"{bias}index", (self.window**2, self.window**2)
                yield from pair(f"{name}.attn.qkv", 3 * c, c)
                yield from pair(f"{name}.attn.proj", c, c)
                yield from pair(f"{name}.norm2", c)
                yield from pair(f"{name}.mlp.fc1", 4 * c, c)
                yield from pair(f"{name}.mlp.fc2", c, 4 * c)
            if stage < 3:
                yield f"backbone.layers.{stage}.downsample.reduction.weight", (2 * c, 4 * c)
                yield from pair(f"layers.{stage}.downsample.norm", 4 * c)
        for stage, c in enumerate(self.channels):
            yield from pair(f"norm{stage}", c)

    def _pixel_decoder(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        prefix, c = "sem_seg_head.pixel_decoder", self.pixel_channels
        coarsest = self.channels[3]
        if self.encoder_layers:
            yield f"{prefix}.input_proj.weight", (c, coarsest, 1, 1)
            yield f"{prefix}.input_proj.bias", (c,)
            coarsest = c
        for layer in range(self.encoder_layers):
            name = f"{prefix}.transformer.encoder.layers.{layer}"
            yield from _attention(f"{name}.self_attn", c)
            yield from _feedforward(name, c, self.feedforward, norms=2)
        convs: Shapes = {f"adapter_{i}": (c, self.channels[i - 1], 1, 1) for i in (1, 2, 3)}
        convs |= {f"layer_{i}": (c, c, 3, 3) for i in (1, 2, 3)} | {"layer_4": (c, coarsest, 3, 3)}
        for conv, shape in convs.items():
            yield f"{prefix}.{conv}.weight", shape
            yield f"{prefix}.{conv}.norm.weight", (c,)
            yield f"{prefix}.{conv}.norm.bias", (c,)
        yield f"{prefix}.mask_features.weight", (self.mask_channels, c, 3, 3)
        yield f"{prefix}.mask_features.bias", (self.mask_channels,)

    def _predictor(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        prefix, c = "sem_seg_head.predictor", self.width
        if self.head == "per_pixel":
            yield f"{prefix}.weight", (self.classes, self.mask_channels, 1, 1)
            yield f"{prefix}.bias", (self.classes,)
            return
        memory = self.pixel_channels if self.encoder_layers else self.channels[3]
        if memory != c:
            yield f"{prefix}.input_proj.weight", (c, memory, 1, 1)
            yield f"{prefix}.input_proj.bias", (c,)
        queries = self.queries if self.head == "maskformer" else self.classes
        yield f"{prefix}.query_embed.weight", (queries, c)
        for layer in range(self.layers):
            name = f"{prefix}.transformer.decoder.layers.{layer}"
            yield from _attention(f"{name}.self_attn", c)
            yield from _attention(f"{name}.multihead_attn", c)
            yield from _feedforward(name, c, self.feedforward, norms=3)
        yield f"{prefix}.transformer.decoder.norm.weight", (c,)
        yield f"{prefix}.transformer.decoder.norm.bias", (c,)
        for layer, out in enumerate((c, c, self.mask_channels)):
            yield f"{prefix}.mask_embed.layers.{layer}.weight", (out, c)
            yield f"{prefix}.mask_embed.layers.{layer}.bias", (out,)
        if self.head == "maskformer":
            yield f"{prefix}.class_embed.weight", (self.classes + 1, c)
            yield f"{prefix}.class_embed.bias", (self.classes + 1,)
            yield "criterion.empty_weight", (self.classes + 1,)


def write_zoo(file: Path, state: State, protocol: int = 2) -> Path:
    """Write a `.pkl` file like those in the model zoo."""
    file.write_bytes(pickle.dumps({"model": state, "__author__": "someone"}, protocol=protocol))
    return file


def _attention(name: str, c: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.in_proj_weight", (3 * c, c)
    yield f"{name}.in_proj_bias", (3 * c,)
    yield f"{name}.out_proj.weight", (c, c)
    yield f"{name}.out_proj.bias", (c,)


def _feedforward(
    name: str, c: int, hidden: int, norms: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.linear1.weight", (hidden, c)
    yield f"{name}.linear1.bias", (hidden,)
    yield f"{name}.linear2.weight", (c, hidden)
    yield f"{name}.linear2.bias", (c,)
    for norm in range(1, norms + 1):
        yield f"{name}.norm{norm}.weight", (c,)
        yield f"{name}.norm{norm}.bias", (c,)
