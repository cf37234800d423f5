"""Inputs and providers that the benchmarks of the mask operations share."""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, Row, count_launches, interleaved, machine_rates, rows, write
from torch import Tensor

from mfkernels import SegmentTargets

# The official criterion is an oracle of the tests, and what ours is timed against.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.official_criterion import criterion as official_criterion  # noqa: F401

EAGER, COMPILED = "eager", "torch.compile"
PAGES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
"""A heap that keeps its pages, so that plain PyTorch does not pay for page faults."""


@dataclass(frozen=True)
class Sizes:
    """MaskFormer's, in the letters of the documentation."""

    images: int
    low: tuple[int, int]
    size: tuple[int, int]
    classes: int
    segments: int
    layers: int = 6
    queries: int = 100
    channels: int = 256


CASES = {
    "A ADE20K 4x512x512": Sizes(4, (128, 128), (512, 512), 150, 9),
    "B COCO 1x800x1344": Sizes(1, (200, 336), (800, 1344), 133, 12),
}


@dataclass
class Inputs:
    """Predictions that need gradients, and targets in both forms."""

    class_logits: Tensor
    mask_embed: Tensor
    pixel_features: Tensor
    targets: SegmentTargets
    official_targets: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.class_logits, self.mask_embed, self.pixel_features]

    @property
    def tensors(self) -> list[Tensor]:
        """All that a provider is given."""
        given = [*self.leaves, self.targets.labels, self.targets.label_map]
        given += [tensor for target in self.official_targets for tensor in target.values()]
        return [tensor for tensor in given if tensor is not None]

    @property
    def factored(self) -> dict[str, Tensor]:
        return {
            "class_logits": self.class_logits,
            "mask_embed": self.mask_embed,
            "pixel_features": self.pixel_features,
        }


def make_inputs(name: str, device: torch.device) -> Inputs:
    """Random predictions; segments that are the Voronoi cells of random points."""
    sizes = CASES[name]
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float, *shape: int) -> Tensor:
        values = scale * torch.randn(shape, generator=generator)
        return values.to(device).requires_grad_()

    height, width = sizes.size
    pixels = torch.stack(
        torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1
    ).float()
    maps, labels = [], []
    for _ in range(sizes.images):
        centers = torch.rand(sizes.segments, 2, generator=generator) * torch.tensor([height, width])
        distance = torch.cdist(pixels.flatten(0, 1), centers)
        maps.append(distance.argmin(1).reshape(height, width))
        labels.append(torch.randint(sizes.classes, (sizes.segments,), generator=generator))
    targets = SegmentTargets.from_label_maps(torch.stack(maps), labels).to(device)
    leading = (sizes.layers, sizes.images, sizes.queries)
    return Inputs(
        draw(1.0, *leading, sizes.classes + 1),
        draw(0.2, *leading, sizes.channels),
        draw(1.0, sizes.images, sizes.channels, *sizes.low),
        targets,
        [
            {"labels": label.to(device), "masks": targets.dense_masks(image)}
            for image, label in enumerate(labels)
        ],
    )


def random_matches(inputs: Inputs) -> Tensor:
    """`[L, B, T]` distinct queries."""
    layers, images, queries, _ = inputs.mask_embed.shape
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(layers, images, queries, generator=generator).argsort(-1)
    return order[..., : inputs.targets.max_count].to(inputs.targets.device)


def saved_bytes(given: Iterable[Tensor], forward: Callable[[], Any]) -> int:
    """What a forward pass keeps for the backward pass, without the inputs themselves."""
    known = {x.untyped_storage().data_ptr() for x in given}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
        total = sum(kept.values())
    del result
    return total


def peak_bytes(device: torch.device, call: Callable[[], object]) -> int:
    """The most memory in use during a call, above that before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


@dataclass(frozen=True)
class FusedRow(Row):
    """Times with what explains them; -1 where it cannot be measured."""

    peak: int
    """Bytes."""
    saved: int
    """Bytes."""
    launches: int
    syncs: int
    floor: float
    """Milliseconds: products and bytes that cannot be avoided at the rates of the machine."""


@dataclass(frozen=True)
class Floor:
    """What no implementation can avoid."""

    flops: float
    """Of matrix products; the arithmetic on single elements is not counted."""
    bytes: float
    """Inputs once for each pass over them, and results."""

    def milliseconds(self, device: torch.device) -> float:
        flops, bandwidth = machine_rates(device)
        return 1e3 * max(self.flops / flops, self.bytes / bandwidth)


def matching_floor(name: str) -> Floor:
    """Logits of all layers, from features that are read once."""
    sizes = CASES[name]
    pixels = sizes.images * sizes.low[0] * sizes.low[1]
    features = 4 * pixels * sizes.channels
    return Floor(2 * sizes.layers * sizes.queries * sizes.channels * pixels, features)


def loss_floor(name: str) -> Floor:
    """Logits of matched masks, twice, and both gradients; features read twice and written once."""
    sizes = CASES[name]
    pixels = sizes.images * sizes.low[0] * sizes.low[1]
    features = 4 * pixels * sizes.channels
    return Floor(4 * 2 * sizes.layers * sizes.segments * sizes.channels * pixels, 3 * features)


Provider = Callable[[], list[Tensor]]
"""Forward and, unless gradients are off, backward; the values to compare."""


def run_case(
    operation: str,
    name: str,
    device: torch.device,
    given: Sequence[Tensor],
    providers: dict[str, Provider],
    forwards: dict[str, Callable[[], Any]],
    seconds: float,
    tolerance: float,
    floor: Floor,
) -> list[FusedRow]:
    """Check every provider against float32 plain PyTorch, then time those that are right."""
    expected = providers[EAGER]()
    right: dict[str, Provider] = {}
    for provider, call in providers.items():
        errors = [
            float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
            for a, b in zip(call(), expected, strict=True)
        ]
        if max(errors) <= tolerance:
            right[provider] = call
        else:
            print(f"{operation} {name}: {provider} is wrong by {max(errors):.2g}")
    del expected
    # The comparison above was the warm-up; eager takes seconds.
    times = interleaved(right, device, seconds, least=3, warm_up=0)
    plain = rows(operation, name, device, times, EAGER)
    keeps_pages = device.type == "cpu" and "GLIBC_TUNABLES" in os.environ
    result = []
    for row in plain:
        call = right[row.provider]
        # Counting on a CPU looks at operators one by one, which ends compilation.
        countable = device.type == "cuda" or row.provider != COMPILED
        launches, syncs = count_launches(device, call) if countable else (-1, -1)
        result.append(
            FusedRow(
                **asdict(row),
                peak=-1 if keeps_pages else peak_bytes(device, call),
                saved=saved_bytes(given, forwards[row.provider])
                if row.provider in forwards
                else -1,
                launches=launches,
                syncs=syncs,
                floor=floor.milliseconds(device),
            )
        )
    return result


def show(result: Iterable[FusedRow]) -> None:
    result = list(result)
    base = next(row for row in result if row.provider == EAGER)
    print(f"\n{base.operation} {base.case} on {base.device}")
    for row in result:
        line = f"  {row.provider:<16} {row.ms:9.2f} ms ({row.p20:.2f} to {row.p80:.2f})"
        line += f"  x{row.ratio:.2f}"
        if row.peak >= 0:
            line += f"   peak {row.peak / 1e6:8.1f} MB (/{base.peak / max(row.peak, 1):.1f})"
        if row.saved >= 0:
            line += f"   saved {row.saved / 1e6:8.2f} MB (/{base.saved / max(row.saved, 1):.0f})"
        line += f"   {row.launches} launches" if row.launches >= 0 else ""
        line += f", {row.syncs} syncs" if row.syncs >= 0 else ""
        line += f"   floor {row.floor:.2f} ms"
        print(line)
    sys.stdout.flush()


def main(
    description: str,
    run: Callable[[str, torch.device, float, bool], list[FusedRow]],
    cases: Iterable[str] = CASES,
) -> None:
    """The command line of a benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="*", default=[], help="first words of case names")
    parser.add_argument("--seconds", type=float, default=10.0, help="time a case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile of eager as well")
    parser.add_argument("--reuse-pages", action="store_true", help="a heap that keeps its pages")
    parser.add_argument("--json", type=Path, help=f"where to write rows, for example in {RESULTS}")
    arguments = parser.parse_args()
    if arguments.reuse_pages and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PAGES})
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    result: list[FusedRow] = []
    for name in cases:
        if not arguments.cases or name.split()[0] in arguments.cases:
            some = run(name, device, arguments.seconds, arguments.compile)
            show(some)
            result += some
    if arguments.json:
        write(arguments.json, result, device)
