"""Predict the criterion's time on an H100 and an H200 from the compiled kernels. Needs no GPU.

python benchmarks/gpu_model.py [--json FILE] [--plot FILE] [--case A] [--dtype bfloat16]

A roofline-style model: it counts each kernel's instructions per pipe and per loop, multiplies by
the trip counts of cases A and B (benchmarks/NOTES.md), and predicts the largest of several bounds:
issue slots, pipes, memory bandwidth, and latency at the achievable occupancy (thread blocks
resident on a multiprocessor). The bounds are independent of each other and ignore caches and
synchronisation between warps. Measured times are therefore longer, by a factor of 1.1 to 1.3 for
the large kernels, which come close to several bounds at once.
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
    parser.add_argument("--plot", type=Path, help="SVG or PNG file to draw (needs matplotlib)")
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
