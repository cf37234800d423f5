"""Print docs/results/published.md from the published.yaml beside it.

`make docs` writes the page, and a test checks that it is up to date.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parents[1] / "docs" / "results" / "published.yaml"
Row = dict[str, Any]

SCORES = {
    "miou": "mIoU",
    "miou_tta": "multi-scale",
    "pq_stuff_only": "PQ, all stuff",
    "pq": "PQ",
    "pq_things": "things",
    "pq_stuff": "stuff",
    "sq": "SQ",
    "rq": "RQ",
}
COSTS = {
    "fps": "images/s",
    "memory": "memory, MB",
    "parameters": "parameters, published",
    "multiply_adds": "10⁹ multiply-adds, published",
}
HERE = ("parameters", "10⁹ multiply-adds")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def figures(rows: list[Row]) -> str:
    """Published scores and costs, and the costs counted here; empty columns are omitted."""
    scores = [key for key in SCORES if any(key in row["scores"] for row in rows)]
    costs = [key for key in COSTS if any(key in row.get("costs", {}) for row in rows)]
    head = ["recipe", *(SCORES[key] for key in scores), *(COSTS[key] for key in costs), *HERE]
    body = [
        [
            f"`{row['recipe']}`",
            *(str(row["scores"].get(key, "")) for key in scores),
            *(str(row.get("costs", {}).get(key, "")) for key in costs),
            f"{row['here']['parameters']:,}",
            f"{row['here']['multiply_adds']} at {row['size'][0]} x {row['size'][1]}",
        ]
        for row in rows
    ]
    return table(head, body)


def commands(rows: list[Row], weights: str) -> str:
    head = ["train", "evaluate the published weights", "weights"]
    return table(head, [command_cells(row, weights) for row in rows])


def command_cells(row: Row, weights: str) -> list[str]:
    recipe = row["recipe"]
    train = f"`maskformer train --config {recipe}`"
    if "weights" not in row:
        return [train, "no configuration and no weights were released", ""]
    file = row["weights"].rpartition("/")[2]
    tta = " --tta" if "miou_tta" in row["scores"] else ""
    evaluate = f"`maskformer evaluate --config {recipe} --checkpoint {file}{tta}`"
    return [train, evaluate, f"[{file}]({weights}/{row['weights']})"]


def ablations(changes: list[Row]) -> str:
    body = [
        [f"`maskformer train --config {recipe} {change['change']}`", str(score)]
        for change in changes
        for recipe, score in change["published"].items()
    ]
    return table(["train", "mIoU / PQ, all stuff"], body)


def page(data: dict[str, Any]) -> Iterator[str]:
    yield data["intro"]
    for part in data["tables"]:
        yield f"## {part['title']}\n"
        if "about" in part:
            yield part["about"] + "\n"
        yield figures(part["rows"])
        yield commands(part["rows"], data["weights"])
    yield "## Ablations that are one value of a recipe\n"
    yield ablations(data["ablations"])


if __name__ == "__main__":
    print("\n".join(page(yaml.safe_load(DATA.read_text(encoding="utf-8")))).rstrip())
