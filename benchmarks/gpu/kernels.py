"""Time each kernel on a GPU: criterion with backward pass, semantic inference, and assignment.

python benchmarks/gpu/kernels.py --json benchmarks/results/h200.json [--only criterion] [--plain]

Rows of the same name in the file are replaced. A row describes one call of this project or, with
`--plain`, also of the plain path:

- `graph_ms`: median CUDA graph replay (null if the call cannot be captured, as when it waits for
  the device)
- `eager_ms`: median time between CUDA events around an ordinary call
- `host_ms`: median time until the call returns to the host
- `launches`, `host_waits`: kernel launches, and how often the host waits for the device
- `peak_mb`: peak memory
- `kernels_us`: time of each kernel that takes at least 1 us, according to PyTorch's profiler;
  missing for calls with more than 200 launches

The plain path of assignment is not measured, as it runs on the CPU.

`benchmarks/gpu_model.py` compares these times with its predictions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "model"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import bench_assignment  # noqa: E402
import bench_criterion  # noqa: E402
import bench_segmentation  # noqa: E402
import triton  # noqa: E402
from harness.comparison import NATIVE, REFERENCE, Provider  # noqa: E402
from harness.inputs import CASES as CRITERION_CASES  # noqa: E402
from harness.memory import peak_bytes  # noqa: E402
from harness.timing import count_launches, graph_seconds  # noqa: E402

DEVICE = torch.device("cuda")
CALLS = 10
MAX_PROFILED_LAUNCHES = 200
"""Launches per call up to which the kernels are profiled one by one."""
OPERATIONS = ("criterion", "semantic", "assignment")
SEGMENTATION = {
    **bench_segmentation.CASES,
    "L K=847 1024x2048, trained": replace(
        bench_segmentation.GPU_CASES["H K=150 1024x2048, trained"], classes=847
    ),
}


def rows(only: Collection[str], plain: bool) -> Iterator[tuple[str, Callable[[], Provider]]]:
    """Yield the name of each row, and a function that builds the call to measure."""
    kinds = (NATIVE, REFERENCE) if plain else (NATIVE,)
    for case, sizes in CRITERION_CASES.items():
        if "criterion" in only:
            name = f"criterion {case[0]} {str(sizes.dtype)[6:]}"
            made = bench_criterion.comparison(sizes, DEVICE)
            for kind in kinds:
                yield f"{name} {named(kind)}", made.providers[kind]
            last = replace(sizes, layout=torch.channels_last)
            made = bench_criterion.comparison(last, DEVICE)
            yield f"{name} {named(NATIVE)}, channels last", made.providers[NATIVE]
    for case, view in SEGMENTATION.items():
        for dtype in (torch.float32, torch.bfloat16):
            if "semantic" in only:
                for kind in kinds:
                    build = of_segmentation(view, dtype, kind)
                    yield f"semantic {case[2:]} {str(dtype)[6:]} {named(kind)}", build
    for case in bench_assignment.GPU_CASES:
        if "assignment" in only:
            made = bench_assignment.make(case, DEVICE, False)
            yield f"assignment {case} {named(NATIVE)}", made.providers[NATIVE]


def named(kind: str) -> str:
    return "eager" if kind == REFERENCE else kind


def of_segmentation(
    sizes: bench_segmentation.Sizes, dtype: torch.dtype, kind: str
) -> Callable[[], Provider]:
    compute = bench_segmentation.native if kind == NATIVE else bench_segmentation.reference

    def build() -> Provider:
        views = bench_segmentation.make_views(sizes, DEVICE, dtype)
        return Provider(lambda: compute(views, sizes))

    return build


def measured(provider: Provider) -> dict[str, Any]:
    for _ in range(3):
        provider.run()
    torch.cuda.synchronize()
    device, host = [], []
    for _ in range(CALLS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.perf_counter()
        begin.record()
        provider.run()
        end.record()
        host.append(1e3 * (time.perf_counter() - start))
        torch.cuda.synchronize()
        device.append(begin.elapsed_time(end))
    graph = graph_seconds(provider)
    launches, waits = count_launches(DEVICE, provider.run)
    row = {
        "graph_ms": None if graph is None else 1e3 * graph,
        "eager_ms": statistics.median(device),
        "host_ms": statistics.median(host),
        "launches": launches,
        "host_waits": waits,
        "peak_mb": peak_bytes(DEVICE, provider.run)[1] / 1e6,
    }
    return row if launches > MAX_PROFILED_LAUNCHES else row | {"kernels_us": kernels_us(provider)}


def kernels_us(provider: Provider) -> dict[str, float]:
    """Mean microseconds per call of each kernel, longest first; those under 1 us are left out."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS):
            provider.run()
        torch.cuda.synchronize()
    total: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            total[event.name[:60]] += event.device_time / CALLS
    return {name: round(us, 1) for name, us in total.most_common() if us >= 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--plain", action="store_true", help="measure the plain path, too")
    arguments = parser.parse_args()
    before: dict[str, Any] = {"rows": []}
    if arguments.json is not None and arguments.json.exists():
        before = json.loads(arguments.json.read_text())
    found = {row["name"]: row for row in before["rows"]}
    for name, build in rows(arguments.only, arguments.plain):
        found[name] = {"name": name, **measured(build())}
        times = {key: value for key, value in found[name].items() if key.endswith("_ms")}
        shown = (f"{key} {'-' if ms is None else f'{ms:.3f}'}" for key, ms in times.items())
        print(f"{name:<46}", *shown, flush=True)
        torch.cuda.empty_cache()
        if arguments.json is not None:
            content = {
                **before,
                "gpu": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "triton": triton.__version__,
                "date": str(date.today()),
                "how": __doc__,
                "rows": [*found.values()],
            }
            arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
