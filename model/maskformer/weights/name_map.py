"""Translation of entry names, both ways from one table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from maskformer.errors import WeightsError
from maskformer.weights.report import LoadReport, printable

COUNTER = "num_batches_tracked"
"""Batch norm counts its batches; nothing that this package builds ever reads the count."""


class Names:
    """Our entry names and what another format calls them.

    Args:
        table: maps prefixes of our names to prefixes of theirs; the rest of a name stays, and the
            first prefix that fits counts. `#` stands for a number that both have. `{a,b,c}` in
            theirs stands for three entries which, joined along the first axis, make ours.
        unused: a pattern for their entries that carry nothing a model needs.
        aliases: other spellings of parts of their names.
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
        """The entries of theirs that make up one of ours; none if they have no such thing."""
        for pattern, target in self._rules:
            if match := pattern.match(name):
                for number in match.groups():
                    target = target.replace("#", number, 1)
                return _expand(target + name[match.end() :])
        return ()

    def to_ours(
        self, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str
    ) -> tuple[dict[str, Tensor], LoadReport]:
        """Looks up the entries of a model in a checkpoint.

        Args:
            weights: the checkpoint's entries, under their names.
            wanted: the model's entries; their shapes count, not their values.
            origin: what the report calls the checkpoint.

        Returns:
            What fits, under our names, and the report.

        Raises:
            WeightsError: entries that are integers, complex or bool where floating point belongs.
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
                        "point: these are no weights of this model"
                    )
            tensor = _join([weights[part] for part in parts])
            if tensor is not None and tensor.shape == target.shape:
                found[name] = tensor
            else:
                shape = list(target.shape)
                shape[:1] = [size // len(parts) for size in shape[:1]]
                mismatched += [f"{p} {list(weights[p].shape)}, expected {shape}" for p in parts]
        left = [name for name in weights if name not in used]
        unused = [name for name in left if name.endswith(COUNTER) or self._unused.fullmatch(name)]
        known = set(unused)
        unexpected = tuple(name for name in left if name not in known)
        return found, LoadReport(
            origin, tuple(missing), unexpected, tuple(mismatched), tuple(unused)
        )

    def to_theirs(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our entries under their names.

        Raises:
            ValueError: an entry that they have no name for.
        """
        renamed: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            parts = self.theirs(name)
            if not parts:
                raise WeightsError(f"this format has no place for the entry {name}")
            pieces = (tensor,) if len(parts) == 1 else tensor.chunk(len(parts))
            renamed |= zip(parts, pieces, strict=True)
        return renamed

    def _spell(self, name: str) -> str:
        for other, usual in self._aliases.items():
            name = re.sub(other, usual, name)
        return name


def identity_names() -> Names:
    """Of our own folders."""
    return Names({"": ""})


def add_position_indexes(weights: dict[str, Tensor]) -> None:
    """Adds the constant tables that the official `swin.py` keeps beside each bias table."""
    for name in [name for name in weights if name.endswith("relative_position_bias_table")]:
        weights[name.removesuffix("bias_table") + "index"] = _position_index(weights[name])


def restore(weights: dict[str, Tensor], leftovers: Mapping[str, Tensor]) -> None:
    """Puts back what the checkpoint that a model came from held in place of a constant."""
    for name, tensor in leftovers.items():
        if name in weights and weights[name].shape == tensor.shape:
            weights[name] = tensor


def count_parts(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the group of `pattern` finds at the start of names."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def depths(names: Iterable[str], pattern: str) -> tuple[int, ...]:
    """Parts per stage; the two groups of `pattern` are the numbers of the stage and of the part."""
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
    """The tensors joined along their first axis; None where they do not match each other."""
    if len(tensors) == 1:
        return tensors[0]
    if len({tensor.shape for tensor in tensors}) != 1 or not tensors[0].ndim:
        return None
    return torch.cat(tensors)


def _position_index(bias_table: Tensor) -> Tensor:
    """For `[(2w-1)^2, heads]`, which row each of the pairs `[w*w, w*w]` of a window takes."""
    window = (round(len(bias_table) ** 0.5) + 1) // 2
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    down = rows[:, None] - rows + window - 1
    right = columns[:, None] - columns + window - 1
    return down * (2 * window - 1) + right
