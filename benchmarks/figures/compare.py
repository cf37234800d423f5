"""Sets a new run beside the committed ones.

python benchmarks/figures/compare.py NEW.json [OLD.json ...]

Only ratios to the plain path are compared, which both runs measured in turns: another machine, or
another hour, has other times. Exits with 1 where a case lost more than a tenth of its ratio.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from committed import RESULTS, read_cases

LOSS = 0.1


def ratios(files: Iterable[Path]) -> dict[str, float]:
    cases = [case for file in files for case in read_cases(file)[1]]
    return {f"{case.operation}: {case.name}": case.plain / case.native for case in cases}


def main(new_file: Path, *old_files: Path) -> int:
    new, old = ratios([new_file]), ratios(old_files or sorted(RESULTS.glob("cpu*.json")))
    lost = []
    print(f"{'case':<52} {'before':>9} {'now':>9}  change   (times faster than the plain path)")
    for case in old.keys() & new.keys():
        change = new[case] / old[case] - 1
        print(f"{case:<52} {old[case]:8.2f}x {new[case]:8.2f}x  {change:+6.1%}")
        if change < -LOSS:
            lost.append(case)
    for title, names in (
        ("only before", old.keys() - new.keys()),
        ("new", new.keys() - old.keys()),
    ):
        if names:
            print(f"{title}: {', '.join(sorted(names))}")
    for case in lost:
        print(f"LOST MORE THAN {LOSS:.0%}: {case}")
    return 1 if lost else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*map(Path, sys.argv[1:])))
