"""Check, time and show the providers of one operation."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness.inputs import CASES, Floor
from harness.memory import PAGES, peak_bytes, saved_bytes
from harness.report import RESULTS, write
from harness.timing import Row, count_launches, interleaved, rows
from torch import Tensor

EAGER, COMPILED = "eager", "torch.compile"


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


Provider = Callable[[], list[Tensor]]
"""Forward and, unless gradients are off, backward; the values to compare."""


def providers_of(
    losses: dict[str, Callable[..., Tensor]], step: Callable[..., list[Tensor]], *arguments: Any
) -> tuple[dict[str, Provider], dict[str, Callable[[], Tensor]]]:
    """Each loss with its backward pass, as `step` does it, and without."""
    both = {name: partial(step, loss, *arguments) for name, loss in losses.items()}
    return both, {name: partial(loss, *arguments) for name, loss in losses.items()}


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
    parser = command_line(description)
    parser.add_argument("--compile", action="store_true", help="torch.compile of eager as well")
    arguments = parse(parser)
    result: list[FusedRow] = []
    for name in chosen(cases, arguments):
        shown = run(name, arguments.device, arguments.seconds, arguments.compile)
        show(shown)
        result += shown
    if arguments.json:
        write(arguments.json, result, arguments.device)


def command_line(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default))
    parser.add_argument("--cases", nargs="*", default=[], help="first words of case names")
    parser.add_argument("--seconds", type=float, default=10.0, help="time a case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--reuse-pages", action="store_true", help="a heap that keeps its pages")
    parser.add_argument("--json", type=Path, help=f"where to write rows, for example in {RESULTS}")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options as given; threads are set, and the process starts anew for another heap."""
    arguments = parser.parse_args()
    if arguments.reuse_pages and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PAGES})
    torch.set_num_threads(arguments.threads)
    return arguments


def chosen(cases: Iterable[str], arguments: argparse.Namespace) -> list[str]:
    """The cases that `--cases` names by their first words; all of them by default."""
    return [c for c in cases if not arguments.cases or c.split()[0] in arguments.cases]
