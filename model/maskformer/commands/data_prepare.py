"""`maskformer data prepare`."""

from __future__ import annotations

import shlex
from pathlib import Path

from maskformer.config.choices import PreparedSet
from maskformer.data.preparation.ade20k_full import prepare_ade20k_full
from maskformer.data.preparation.ade20k_panoptic import prepare_ade20k_panoptic
from maskformer.output.console import Progress

PREPARATIONS = {
    "ade20k_full": (prepare_ade20k_full, "ade20k_full/r50"),
    "ade20k_panoptic": (prepare_ade20k_panoptic, "ade20k_panoptic/r50_6enc"),
}
"""The function for each data set, and a recipe for its result."""


def run(name: PreparedSet, root: Path) -> None:
    """Convert the archive in `root`, and report the results.

    Raises:
        DatasetError: files are missing or cannot be used.
        DiskFullError, OSError: the results cannot be written.
    """
    prepare, recipe = PREPARATIONS[name]
    done = prepare(root)
    folders = ", ".join(folder.name for folder in done.folders)
    progress = Progress()
    progress.print(f"{done.images:,} images: {done.written:,} files written into {root}: {folders}")
    progress.print(f"  maskformer data check --config {recipe} {shlex.quote(f'data.root={root}')}")
