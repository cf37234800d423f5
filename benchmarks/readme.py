"""Writes the table of measured figures into README.md, from the JSON files under results/."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
README = FOLDER.parent / "README.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
BASELINES = ("eager", "scipy loop")


def table() -> str:
    """One line per case: this project, the plain path it replaces, and the best peer."""
    lines = [
        "| operation, case | on | mfkernels | plain path | ratio | best peer |",
        "|---|---|---|---|---|---|",
    ]
    for file in sorted((FOLDER / "results").glob("*_cpu.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        machine = f"{content['machine']['threads']} CPU threads"
        cases: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for row in content["rows"]:
            cases[row["operation"], row["case"]][row["provider"]] = row["ms"]
        for (operation, case), times in cases.items():
            ours = times.pop("mfkernels")
            plain = next(times.pop(name) for name in BASELINES if name in times)
            peer = min(times.items(), key=lambda item: item[1], default=None)
            beside = f"{peer[1]:.3g} ms ({peer[0]})" if peer else ""
            lines.append(
                f"| {operation}, {case} | {machine} | {ours:.3g} ms | {plain:.4g} ms "
                f"| {plain / ours:.1f}× | {beside} |"
            )
    return "\n".join(lines)


def update(text: str) -> str:
    """The README with the present table between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(update(README.read_text(encoding="utf-8")), encoding="utf-8")
