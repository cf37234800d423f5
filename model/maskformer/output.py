"""Output folders, looked at before the work that fills them."""

from __future__ import annotations

import os
from pathlib import Path


def check_output_folder(folder: Path) -> None:
    """Refuses a folder that could not be made or written: hours later it would be too late.

    Raises:
        NotADirectoryError: it, or what would hold it, is a file.
        PermissionError: it cannot be written.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{folder} cannot be an output folder: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be an output folder: {place} cannot be written")
