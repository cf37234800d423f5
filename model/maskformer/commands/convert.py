"""`maskformer convert`."""

from __future__ import annotations

from pathlib import Path

from maskformer.config.choices import Format
from maskformer.convert import convert
from maskformer.output.console import Progress


def run(source: str, target: Path, to: Format, *, overwrite: bool = False) -> None:
    """Convert a checkpoint, and report its number of parameters."""
    model = convert(source, target, to, overwrite=overwrite)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    Progress().print(f"A model of {parameters:,} parameters was written to {target} as {to}.")
