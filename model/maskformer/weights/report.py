"""A report of how the entries of a checkpoint fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from maskformer.config.load import changed_values
from maskformer.config.schema import ModelConfig
from maskformer.errors import WeightsError
from maskformer.system.text import escape

_LISTED = 5
_LONGEST = 200
_WITHOUT_SHAPE = (
    "pixel_mean",
    "pixel_std",
    "backbone.multi_grid",
    "pixel_decoder.groups",
    "decoder.heads",
)
"""Values of a model that change what its weights compute, but not their shapes."""


@dataclass(frozen=True)
class LoadReport:
    """How the entries of a checkpoint fit those of a model. Names are the checkpoint's.

    Attributes:
        origin: the file or folder.
        missing: entries of the model that the checkpoint lacks.
        unexpected: entries of the checkpoint that the model does not have.
        mismatched: entries of another shape, each with both shapes.
        unused: entries that the model is known not to need, such as index tables.
        class_head: the numbers of classes of the checkpoint and of the model, if only entries with
            one row per class do not fit; otherwise None.
    """

    origin: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    class_head: tuple[int, int] | None = None

    @property
    def summary(self) -> str:
        """The report in one line if only the number of classes differs, otherwise in full."""
        if self.class_head is None or self.unexpected:
            return str(self)
        before, now = self.class_head
        return f"class head is new ({before} -> {now} classes); all else comes from {self.origin}"

    def __str__(self) -> str:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.mismatched,
        }
        lines = [f"  {len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]
        if not lines:
            return f"{self.origin} fits the model"
        return "\n".join([f"{self.origin} does not fit the model:", *lines])


class WeightsMismatchError(WeightsError):
    """The weights do not fit the model; `report` holds the full lists."""

    def __init__(self, report: LoadReport, advice: str) -> None:
        super().__init__(f"{report}\n{advice}")
        self.report = report


def warning_of_values(weights: Mapping[str, Tensor], origin: str) -> str:
    """Return a warning that names the entries that contain NaN or infinity, or "" if none do."""
    # If a sum is finite, all values are; this is ten times as fast as checking each value.
    sums = {name: weight.sum() for name, weight in weights.items()}
    names = [
        name
        for name, total in sums.items()
        if not total.isfinite() and not weights[name].isfinite().all()
    ]
    if not names:
        return ""
    return (
        f"{origin} holds NaN or infinity in {len(names)} of {len(weights)} entries, so its "
        f"predictions are meaningless: {_some(tuple(names))}"
    )


def warning_of_config(theirs: ModelConfig, ours: ModelConfig, origin: str) -> str:
    """Return a warning that names the values with which the weights of one model compute something
    else in another, although they fit, or "" if there are none.
    """
    changes = changed_values(theirs, ours)
    known = [
        f"model.{name}={changes[name][0]} (here {changes[name][1]})"
        for name in _WITHOUT_SHAPE
        if name in changes
    ]
    if not known:
        return ""
    return (
        f"{origin} belongs to a model with {', '.join(known)}: its weights fit here, but compute "
        "something else; set the same values unless that is intended"
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join([*map(printable, names[:_LISTED]), *["..."] * (len(names) > _LISTED)])


def printable(name: str) -> str:
    """Make a name from a file, which may be long or hold control characters, safe to print."""
    shown = escape(name)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."
