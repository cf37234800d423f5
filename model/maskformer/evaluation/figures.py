"""The figures of an evaluation as files: `metrics.json` and the confusion matrix."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskformer.evaluation.evaluate import Evaluation, metrics_to_json
from maskformer.output.confusion_picture import draw_confusion
from maskformer.output.output_folder import CONFUSION, METRICS
from maskformer.output.pictures import save_map
from maskformer.system.text import encodable
from maskformer.system.writing import write_text


def write_figures(
    folder: Path, metrics: Mapping[str, float], evaluation: Evaluation, classes: Sequence[str]
) -> None:
    """Writes `metrics.json`: figures by name, and `per_class` by name of the figure and the class.

    Raises:
        OSError: the folder cannot be written.
    """
    named = {
        figure: dict(zip(unique_names(classes), values, strict=True))
        for figure, values in evaluation.per_class.items()
    }
    write_text(folder / METRICS, metrics_to_json({**metrics, "per_class": named}))


def write_confusion(folder: Path, evaluation: Evaluation, classes: Sequence[str]) -> None:
    """Writes `confusion_matrix.json` and `.png`; nothing where no classes were scored.

    Raises:
        OSError: the folder cannot be written.
    """
    if evaluation.confusion is None:
        return
    counts = evaluation.confusion.tolist()[:-1]
    values = {
        "rows": "ground truth",
        "columns": "prediction; the last is void",
        "unit": "pixels",
        "classes": [encodable(name) for name in classes],
    }
    # A row per line, or 150 classes would take 22,500 lines.
    rows = ",\n".join(f"  {json.dumps(row)}" for row in counts)
    text = json.dumps(values, indent=1)[:-2] + f',\n "matrix": [\n{rows}\n ]\n}}\n'
    write_text(folder / f"{CONFUSION}.json", text)
    save_map(draw_confusion(evaluation.confusion, classes), folder / f"{CONFUSION}.png")


def read_figures(folder: Path) -> dict[str, float] | None:
    """The figures in `metrics.json` but for those by class, or None where it cannot be read."""
    try:
        written: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return {
            name: math.nan if value is None else float(value)
            for name, value in written.items()
            if name != "per_class"
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def unique_names(classes: Sequence[str]) -> list[str]:
    """The names as UTF-8 can hold them; where several classes share one, with their numbers."""
    names = [encodable(name) for name in classes]
    counts = Counter(names)
    unique: dict[str, int] = {}
    for index, name in enumerate(names):
        key = name if counts[name] == 1 else f"{name} ({index})"
        while key in unique:
            key = f"{key} ({index})"
        unique[key] = index
    return list(unique)
