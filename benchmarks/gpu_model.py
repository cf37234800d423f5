"""What the criterion should take on an H100 and an H200, from the compiled kernels. No GPU.

python benchmarks/gpu_model.py [--json FILE] [--plot FILE] [--case A] [--dtype bfloat16]

Counts the instructions of each kernel by pipe, loop by loop, multiplies by how often the loops run
in cases A and B (benchmarks/NOTES.md), and takes for each kernel the longest of its bounds: issue
of instructions, pipes, memory, and latency at the number of programs that a multiprocessor holds.
No bound knows of another one, of caches, or of warps that wait for each other: measured times are
longer, by 1.1 to 1.3 for the large kernels, which bound several resources at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gpu.model.cases import CASES  # noqa: E402
from gpu.model.machines import MACHINES  # noqa: E402
from gpu.model.report import (  # noqa: E402
    DTYPES,
    MEASURED_ON,
    Measured,
    as_json,
    plot,
    print_rows,
    print_totals,
    rows_of,
    summary,
)

from mfkernels import backend  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu_model.json")
    parser.add_argument("--plot", type=Path, help="an SVG or PNG file (needs matplotlib)")
    parser.add_argument("--case", choices=[case.name for case in CASES])
    parser.add_argument("--dtype", choices=[str(dtype).removeprefix("torch.") for dtype in DTYPES])
    arguments = parser.parse_args()
    library = backend.part("cuda").path if backend.part("cuda").usable else None
    measured = Measured(RESULTS / "h200.json")
    rows = [
        row
        for case in CASES
        for dtype in DTYPES
        if arguments.case in (None, case.name) and arguments.dtype in (None, str(dtype)[6:])
        for row in rows_of(case, dtype, measured, library)
    ]
    print_rows(rows)
    earlier = json.loads((RESULTS / "h200_round0.json").read_text())["rows"]
    totals = summary(rows, measured, {row["name"]: row.get("graph_ms") for row in earlier})
    print_totals(totals)
    found = as_json(rows, totals, library)
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.plot is not None:
        first = [row for row in rows if (row.case, row.dtype) == (rows[0].case, rows[0].dtype)]
        plot(first, MACHINES[MEASURED_ON], arguments.plot)


if __name__ == "__main__":
    main()
