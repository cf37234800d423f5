"""Checksums of the model and the training state, in the form that `sha256sum -c` reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

from maskformer.weights.files import WEIGHTS_FILE
from maskformer.weights.locate import STATE

CHECKSUMS = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """Covers the tensors in a folder; its texts stay open to a person's edits.

    Raises:
        OSError: a file cannot be read or written.
    """
    files = sorted((*folder.glob("*.safetensors"), *folder.glob("*.pt")))
    lines = [f"{_digest(file)}  {file.name}\n" for file in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def find_damage(folder: Path) -> str:
    """What is wrong with a checkpoint, or "". One without checksums, from an earlier version, only
    has to be complete.
    """
    try:
        for name in (WEIGHTS_FILE, STATE):
            if not (folder / name).is_file():
                return f"{name} is missing"
        if not (folder / CHECKSUMS).is_file():
            return ""
        for line in (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _digest(folder / name) != digest:
                return f"{name} does not match its checksum in {CHECKSUMS}"
    except (OSError, UnicodeDecodeError) as error:
        return f"it cannot be read: {error}"
    return ""


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
