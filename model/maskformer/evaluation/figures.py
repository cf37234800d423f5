"""The files of an evaluation: `metrics.json` and the confusion matrix."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskformer.evaluation.evaluate import Evaluation
from maskformer.output.confusion_picture import draw_confusion
from maskformer.output.output_folder import CONFUSION, METRICS
from maskformer.output.pictures import save_map
from maskformer.system.text import encodable
from maskformer.system.writing import write_text


def write_metrics(
    folder: Path, metrics: Mapping[str, float], evaluation: Evaluation, classes: Sequence[str]
) -> None:
    """Write `metrics.json`: metrics by name, and `per_class` by the names of metric and class.

    Raises:
        OSError: the folder cannot be written.
    """
    named = {
        metric: dict(zip(unique_names(classes), values, strict=True))
        for metric, values in evaluation.per_class.items()
    }
    write_text(folder / METRICS, metrics_to_json({**metrics, "per_class": named}))


def metrics_to_json(values: Mapping[str, Any]) -> str:
    """Convert metrics to strict JSON, with null for values that are not finite."""

    def strict(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: strict(part) for name, part in value.items()}
        if isinstance(value, list):
            return [strict(part) for part in value]
        return value if math.isfinite(value) else None

    return json.dumps(strict(values), indent=1, allow_nan=False) + "\n"


def write_confusion(folder: Path, evaluation: Evaluation, classes: Sequence[str]) -> None:
    """Write `confusion_matrix.json` and `.png`, if there is a confusion matrix.

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
    # One line per row; with one line per number, 150 classes would take 22,500 lines.
    rows = ",\n".join(f"  {json.dumps(row)}" for row in counts)
    text = json.dumps(values, indent=1)[:-2] + f',\n "matrix": [\n{rows}\n ]\n}}\n'
    write_text(folder / f"{CONFUSION}.json", text)
    save_map(draw_confusion(evaluation.confusion, classes), folder / f"{CONFUSION}.png")


def read_metrics(folder: Path) -> dict[str, float] | None:
    """Read the metrics in `metrics.json` without `per_class`, or None if it cannot be read."""
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
    """Return names that can be encoded as UTF-8; equal names get their index appended."""
    names = [encodable(name) for name in classes]
    counts = Counter(names)
    unique: dict[str, int] = {}
    for index, name in enumerate(names):
        key = name if counts[name] == 1 else f"{name} ({index})"
        while key in unique:
            key = f"{key} ({index})"
        unique[key] = index
    return list(unique)
