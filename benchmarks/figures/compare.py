"""Compare a new benchmark run with earlier ones, by default with the committed CPU runs.

python benchmarks/figures/compare.py NEW.json [OLD.json ...]

Absolute times depend on the machine and its load, so only speed-ups over the plain path are
compared: each run timed both interleaved. Exits with status 1 if a case lost more than a tenth of
its speed-up.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from committed import RESULTS, read_cases

TOLERATED_LOSS = 0.1


def ratios(files: Iterable[Path]) -> dict[str, float]:
    """Speed-up over the plain path for each case of the files."""
    cases = [case for file in files for case in read_cases(file)[1]]
    return {f"{case.operation}: {case.name}": case.plain / case.native for case in cases}


def main(new_file: Path, *old_files: Path) -> int:
    new, old = ratios([new_file]), ratios(old_files or sorted(RESULTS.glob("cpu*.json")))
    lost = []
    print(f"{'case':<52} {'before':>9} {'now':>9}  change   (times faster than the plain path)")
    for case in (case for case in old if case in new):
        change = new[case] / old[case] - 1
        print(f"{case:<52} {old[case]:8.2f}x {new[case]:8.2f}x  {change:+6.1%}")
        if change < -TOLERATED_LOSS:
            lost.append(case)
    for title, names in (
        ("only before", old.keys() - new.keys()),
        ("new", new.keys() - old.keys()),
    ):
        if names:
            print(f"{title}: {', '.join(sorted(names))}")
    for case in lost:
        print(f"LOST MORE THAN {TOLERATED_LOSS:.0%}: {case}")
    return 1 if lost else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*map(Path, sys.argv[1:])))
