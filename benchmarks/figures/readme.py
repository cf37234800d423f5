"""Writes the table of measured figures into README.md, from the JSON files under results/."""

from __future__ import annotations

from pathlib import Path

from committed import Case, committed_runs, read_cases

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
GROWTH = "growth"


def table() -> str:
    """One line per case: this project, the plain path that it replaces, the best of the rest."""
    lines = [
        "| operation, case | on | mfkernels | plain path | ratio | best other |",
        "|---|---|---|---|---|---|",
    ]
    for file in committed_runs():
        machine, cases = read_cases(file)
        lines += [_line(case, machine) for case in cases if case.operation != GROWTH]
    return "\n".join(lines)


def _line(case: Case, machine: str) -> str:
    name, ms = case.best_other()
    beside = f"{ms:.3g} ms ({name})" if name else ""
    return (
        f"| {case.operation}, {case.name} | {machine} | {case.native:.3g} ms | {case.plain:.4g} ms "
        f"| {case.plain / case.native:.1f}× | {beside} |"
    )


def update(text: str) -> str:
    """The README with the present table between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(update(README.read_text(encoding="utf-8")), encoding="utf-8")
