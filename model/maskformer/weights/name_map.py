"""Translation of entry names in both directions with one table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from maskformer.errors import WeightsError
from maskformer.weights.report import LoadReport, printable

COUNTER = "num_batches_tracked"
"""The name of the batch counter of BatchNorm, which is never used in this package."""


class Names:
    """The translation between our entry names and those of another format ("theirs").

    Args:
        table: maps prefixes of our names to prefixes of theirs; the first prefix that matches is
            used, and the rest of the name is kept. `#` stands for a number that occurs in both.
            `{a,b,c}` in theirs stands for three entries that are concatenated along the first axis
            to make ours.
        unused: a pattern for entries of theirs that a model does not need.
        aliases: replacements (pattern to text) for alternative spellings of their names.
    """

    def __init__(
        self, table: Mapping[str, str], unused: str = "", aliases: Mapping[str, str] | None = None
    ) -> None:
        self._rules = [
            (re.compile(re.escape(ours).replace(r"\#", r"(\d+)")), theirs)
            for ours, theirs in table.items()
        ]
        self._unused = re.compile(unused)
        self._aliases = aliases or {}

    def theirs(self, name: str) -> tuple[str, ...]:
        """Return the names of their entries that make up one of ours; () if there are none."""
        for pattern, target in self._rules:
            if match := pattern.match(name):
                for number in match.groups():
                    target = target.replace("#", number, 1)
                return _expand(target + name[match.end() :])
        return ()

    def to_ours(
        self, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str
    ) -> tuple[dict[str, Tensor], LoadReport]:
        """Look up the entries of a model in a checkpoint.

        Args:
            weights: the entries of the checkpoint under their names.
            wanted: the entries of the model, of which only shapes and dtypes are used.
            origin: the name of the checkpoint in the report.

        Returns:
            The entries that fit, under our names, and a report of the others.

        Raises:
            WeightsError: an entry is not floating-point, but that of the model is.
        """
        weights = {self._spell(name): tensor for name, tensor in weights.items()}
        found: dict[str, Tensor] = {}
        missing: list[str] = []
        mismatched: list[str] = []
        used: set[str] = set()
        for name, target in wanted.items():
            parts = self.theirs(name) or (name,)
            used.update(parts)
            absent = [part for part in parts if part not in weights]
            if absent:
                missing += [part for part in absent if not part.endswith(COUNTER)]
                continue
            for part in parts if target.is_floating_point() else ():
                if not weights[part].is_floating_point():
                    raise WeightsError(
                        f"{origin}: {printable(part)} is {weights[part].dtype}, expected floating "
                        "point: it does not belong to this model"
                    )
            tensor = _join([weights[part] for part in parts])
            if tensor is not None and tensor.shape == target.shape:
                found[name] = tensor
            else:
                shape = list(target.shape)
                shape[:1] = [size // len(parts) for size in shape[:1]]
                mismatched += [f"{p} {list(weights[p].shape)}, expected {shape}" for p in parts]
        others = [name for name in weights if name not in used]
        unused = [name for name in others if name.endswith(COUNTER) or self._unused.fullmatch(name)]
        known = set(unused)
        unexpected = tuple(name for name in others if name not in known)
        return found, LoadReport(
            origin, tuple(missing), unexpected, tuple(mismatched), tuple(unused)
        )

    def to_theirs(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate our entries to their names.

        Raises:
            ValueError: the other format has no name for an entry.
        """
        renamed: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            parts = self.theirs(name)
            if not parts:
                raise WeightsError(f"this format has no name for the entry {name}")
            pieces = (tensor,) if len(parts) == 1 else tensor.chunk(len(parts))
            renamed |= zip(parts, pieces, strict=True)
        return renamed

    def _spell(self, name: str) -> str:
        for other, usual in self._aliases.items():
            name = re.sub(other, usual, name)
        return name


def identity_names() -> Names:
    """Return the translation for our own format, in which names are equal."""
    return Names({"": ""})


def add_position_indexes(weights: dict[str, Tensor]) -> None:
    """Add the constant index tables that the official `swin.py` stores with each bias table."""
    for name in [name for name in weights if name.endswith("relative_position_bias_table")]:
        weights[name.removesuffix("bias_table") + "index"] = _position_index(weights[name])


def restore(weights: dict[str, Tensor], unused: Mapping[str, Tensor]) -> None:
    """Replace constants by the unused entries of the checkpoint that a model was loaded from."""
    for name, tensor in unused.items():
        if name in weights and weights[name].shape == tensor.shape:
            weights[name] = tensor


def count_parts(names: Iterable[str], pattern: str) -> int:
    """Count the different values of the group in `pattern`, matched at the start of names."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def depths(names: Iterable[str], pattern: str) -> tuple[int, ...]:
    """Count the blocks in each stage. The two groups of `pattern` are the numbers of stage and
    block.
    """
    found = {match.groups() for name in names if (match := re.match(pattern, name))}
    counts = Counter(int(stage) for stage, _ in found)
    return tuple(counts[stage] for stage in sorted(counts))


def _expand(name: str) -> tuple[str, ...]:
    before, brace, rest = name.partition("{")
    if not brace:
        return (name,)
    choices, _, after = rest.partition("}")
    return tuple(before + choice + after for choice in choices.split(","))


def _join(tensors: list[Tensor]) -> Tensor | None:
    """Concatenate tensors along the first axis; return None if their shapes differ."""
    if len(tensors) == 1:
        return tensors[0]
    if len({tensor.shape for tensor in tensors}) != 1 or not tensors[0].ndim:
        return None
    return torch.cat(tensors)


def _position_index(bias_table: Tensor) -> Tensor:
    """Compute the row of a bias table `[(2w-1)^2, heads]` for each pair of positions in a window,
    `[w*w, w*w]`.
    """
    window = (round(len(bias_table) ** 0.5) + 1) // 2
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    down = rows[:, None] - rows + window - 1
    right = columns[:, None] - columns + window - 1
    return down * (2 * window - 1) + right
