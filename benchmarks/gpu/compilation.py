"""Compile every Triton kernel for every known GPU, without one: shared memory, registers, spills.

python benchmarks/gpu/compilation.py [--architecture sm_75 ...] [--kernel sums_kernel ...]
    [--json FILE] [--page FILE]

The JSON file holds, for each kernel, architecture and dtype, the most registers, the largest shared
memory and register spill in bytes, and the cases that cause the latter two. Rows already in the
file for other architectures and kernels are kept. For AMD GPUs, the variant that a ROCm build of
PyTorch would select is compiled.
Exits with status 1 if a kernel fails to compile or exceeds a limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
SPILLED_ON_TURING = 64
"""Bytes that a kernel may spill on sm_75; elsewhere, spills are allowed only where measurements
showed them to be faster.
"""


@dataclass
class Row:
    """The worst resource usage of one kernel over all its variants and cases."""

    architecture: str
    kernel: str
    dtype: str
    programs: int = 0
    """Compiled variants."""
    registers: int = 0
    shared_memory: int = 0
    """Bytes per thread block, in `shared_case`."""
    shared_case: str = ""
    spilled: int = 0
    """Bytes, in `spilled_case`."""
    spilled_case: str = ""
    problem: str = ""
    """The compiler's error, if it failed."""


def compiled(architecture: str, kernels: Sequence[str] = ()) -> Iterator[Row]:
    """Compile the kernels in this process, which poses as a ROCm build of PyTorch for AMD GPUs.

    That change is permanent, which is why `main` starts a process for each architecture.
    """
    if architecture.startswith("gfx"):
        torch.version.hip, torch.version.cuda = "7.0", None  # type: ignore[assignment]
    sys.path.append(str(ROOT / "tests"))
    from helpers.gpu.compiler import compile_launch, made_for
    from helpers.gpu.launches import of_everything

    rows: dict[tuple[str, torch.dtype], Row] = {}
    with made_for(architecture) as gpu:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            if dtype == torch.bfloat16 and not gpu.generation.bfloat16:
                continue
            for case, launch in of_everything(dtype):
                if kernels and launch.name not in kernels:
                    continue
                name = str(dtype).removeprefix("torch.")
                row = rows.setdefault((launch.name, dtype), Row(architecture, launch.name, name))
                row.programs += 1
                try:
                    found = compile_launch(launch, architecture)
                except Exception as error:
                    row.problem = f"{case}: {type(error).__name__}: {str(error).splitlines()[0]}"
                    continue
                row.registers = max(row.registers, found.registers)
                if found.shared > row.shared_memory:
                    row.shared_memory, row.shared_case = found.shared, case
                if found.spilled > row.spilled:
                    row.spilled, row.spilled_case = found.spilled, case
    yield from rows.values()


def problems(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Describe the rows that failed to compile or exceed a limit."""
    sys.path.append(str(ROOT / "tests"))
    from helpers.gpu.compiler import SPILLED_WHERE_FASTER

    from mfkernels.triton.devices import KNOWN

    for row in rows:
        name = f"{row['architecture']} {row['kernel']} {row['dtype']}"
        case = (row["architecture"], row["kernel"], getattr(torch, row["dtype"]))
        allowed = SPILLED_WHERE_FASTER.get(case, 0)
        if row["architecture"] == "sm_75":
            allowed = SPILLED_ON_TURING
        if row["problem"]:
            yield f"{name}: {row['problem']}"
        if row["shared_memory"] > KNOWN[row["architecture"]].shared_memory:
            yield f"{name}: {row['shared_memory']} bytes of shared memory, {row['shared_case']}"
        if row["spilled"] > allowed:
            yield f"{name}: {row['spilled']} bytes spilled, {row['spilled_case']}"


def page(report: dict[str, Any]) -> str:
    """A Markdown table of kernels by architecture: shared memory in KB and spills in bytes, both
    the worst over all dtypes and cases.
    """
    from mfkernels.triton.devices import KNOWN

    rows = report["rows"]
    names = [name for name in KNOWN if any(row["architecture"] == name for row in rows)]
    lines = ["| kernel | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    limits = [f"{KNOWN[name].shared_memory >> 10} KB" for name in names]
    lines.append("| limit of shared memory | " + " | ".join(limits) + " |")
    for kernel in sorted({row["kernel"] for row in rows}):
        cells = []
        for name in names:
            own = [r for r in rows if (r["kernel"], r["architecture"]) == (kernel, name)]
            shared = max(row["shared_memory"] for row in own) / 1024
            spilled = max(row["spilled"] for row in own)
            cells.append(f"{shared:.0f}" + (f", spills {spilled}" if spilled else ""))
        lines.append(f"| {kernel.removesuffix('_kernel')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", nargs="*", help="only these architectures")
    parser.add_argument("--kernel", nargs="*", default=[], help="only these kernels")
    parser.add_argument("--json", type=Path, help="update this file")
    parser.add_argument("--page", type=Path, help="update the table between this page's markers")
    # Internal: print the rows of one architecture to stdout as JSON.
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rows:
        print(json.dumps([asdict(row) for row in compiled(arguments.rows, arguments.kernel)]))
        return
    import triton

    from mfkernels.triton.devices import KNOWN

    rows: list[dict[str, Any]] = []
    if arguments.json and arguments.json.exists():
        rows = json.loads(arguments.json.read_text())["rows"]
    for name in arguments.architecture or KNOWN:
        print(f"compiling for {name}", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--rows", name, "--kernel", *arguments.kernel]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        kept = (
            row
            for row in rows
            if row["architecture"] != name
            or (arguments.kernel and row["kernel"] not in arguments.kernel)
        )
        rows = [*kept, *json.loads(found)]
        report = {"torch": torch.__version__, "triton": triton.__version__, "rows": rows}
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.page:
        before, mark, rest = arguments.page.read_text().partition("<!-- table -->\n")
        after = rest.partition("<!-- end of table -->")[2]
        text = f"{before}{mark}{page(report)}<!-- end of table -->{after}"
        arguments.page.write_text(text)
    beyond = list(problems(rows))
    print(*beyond, sep="\n")
    sys.exit(int(bool(beyond)))


if __name__ == "__main__":
    main()
