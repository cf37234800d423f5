"""`maskformer init`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import torch
import typer

from maskformer.data.layout.draft import draft
from maskformer.data.layout.survey import survey
from maskformer.errors import UsageError
from maskformer.output.console import Progress
from maskformer.output.output_folder import check_output_folder
from maskformer.system.text import escape
from maskformer.system.writing import write_text


def run(folder: Path, output: Path | None) -> None:
    """Write a recipe for the data in `folder` to the file `output`; `-` prints it."""
    file = output or Path(f"{folder.resolve().name}.yaml")
    if str(file) != "-" and os.path.lexists(file):
        raise UsageError(f"{file} already exists; choose another --output, or remove it")
    if str(file) != "-":
        check_output_folder(file.parent)
    text = draft(survey(folder.resolve()), gpu=torch.cuda.is_available())
    if str(file) == "-":
        typer.echo(text, nl=False)
        return
    write_text(file, text)
    progress = Progress()
    progress.print(f"wrote {escape(file)}; look at it, then")
    for command in ("data check", "train"):
        progress.print(f"  maskformer {command} --config {shlex.quote(str(file))}")
