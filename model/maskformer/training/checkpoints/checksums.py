"""Checksums of the model and the training state, in the form that `sha256sum -c` reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

from maskformer.errors import CheckpointError, ConfigError
from maskformer.system.documents import parse_yaml, read_mapping, read_text
from maskformer.training.checkpoints.contents import DATASET, load_info
from maskformer.weights.files import CONFIG_FILE, WEIGHTS_FILE
from maskformer.weights.locate import RECIPE, STATE
from maskformer.weights.native import read_config

CHECKSUMS = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """Write the checksums of a checkpoint's tensor files. Text files have none, so that a user may
    edit them.

    Raises:
        OSError: a file cannot be read or written.
    """
    files = sorted((*folder.glob("*.safetensors"), *folder.glob("*.pt")))
    lines = [f"{_digest(file)}  {file.name}\n" for file in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def find_damage(folder: Path) -> str:
    """Return what is damaged in a checkpoint, or "".

    A checkpoint of an earlier version, which has no checksums, only has to be complete and its text
    files readable. The recipe need not be valid in this version, as it may be replaced.
    """
    try:
        for name in (WEIGHTS_FILE, STATE, CONFIG_FILE, RECIPE):
            if not (folder / name).is_file():
                return f"{name} is missing"
        _read_texts(folder)
        if not (folder / CHECKSUMS).is_file():
            return ""
        for line in (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _digest(folder / name) != digest:
                return f"{name} does not match its checksum in {CHECKSUMS}"
    except (OSError, ValueError, CheckpointError) as error:
        return f"it cannot be read: {error}"
    return ""


def _read_texts(folder: Path) -> None:
    """Read all text files; raise an error that names the first damaged one."""
    read_config(folder, read_mapping(folder / CONFIG_FILE))
    if (folder / DATASET).is_file():
        load_info(folder)
    try:
        recipe = parse_yaml(read_text(folder / RECIPE))
    except ConfigError as error:
        raise ConfigError(f"{RECIPE} is damaged: {error}") from None
    if not isinstance(recipe, dict):
        raise ConfigError(f"{RECIPE} must hold a mapping, got {type(recipe).__name__}")


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
