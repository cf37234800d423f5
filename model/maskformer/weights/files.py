"""Reading and writing of weight files."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskformer.errors import WeightsError
from maskformer.system.documents import one_line, read_mapping
from maskformer.system.writing import replace_file
from maskformer.weights.report import printable
from maskformer.weights.safe_pickle.machine import kind
from maskformer.weights.safe_pickle.unpickle import read_pickle

_SECTIONS = ("model_ema", "state_dict_ema", "model", "state_dict")
_MAX_NAME = 200
_MAX_HEADER = 4 << 20
"""Limit of the header of a `.safetensors` file in bytes, which is enough for 30,000 entries."""

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
WEIGHT_SUFFIXES = frozenset({".safetensors", ".pkl", ".pth", ".pt", ".bin"})


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read the entries of a weight file on the CPU. Code pickled in it is not run.

    From a training checkpoint, the entries of the model are read; averaged weights (EMA) are
    preferred.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is truncated, contains code, or contains no tensors.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {file.name}")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    return _tensors(read_pickle(file), file)


def read_sharded(index: Path) -> dict[str, Tensor]:
    """Read the entries of all files listed in a `*.index.json` of `transformers`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the index or a file is damaged, or an entry is not in any file.
    """
    weight_map = read_mapping(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index} is damaged: it has no weight_map")
    weights: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in weight_map.values()}):
        if Path(name).name != name or len(name) > _MAX_NAME:
            raise WeightsError(f"{index} names the file '{printable(name)}' outside its folder")
        weights |= read_tensors(index.parent / name)
    absent = sorted(set(weight_map) - set(weights))
    if absent:
        first = printable(str(absent[0]))
        raise WeightsError(
            f"{index} lists {len(absent)} entries that are not in any file, first {first}"
        )
    return weights


def write_tensors(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a `.safetensors` file that PyTorch and `transformers` can read, with the default
    permissions of new files.

    Raises:
        OSError: the file cannot be written; an existing one is kept.
    """
    # Copy, because the format does not support tensors that share memory.
    ready = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }

    def save(partial: Path) -> None:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(ready, partial, metadata={"format": "pt"})
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
        if partial.stat().st_mode != mode:  # save_file makes it readable by the owner only
            with suppress(OSError):  # not every file system has permissions
                partial.chmod(S_IMODE(mode))

    replace_file(file, save)


def check_weight_file(file: Path) -> None:
    """Check that a file has the suffix of a weight file.

    Raises:
        ValueError: it has another suffix.
    """
    if file.suffix not in WEIGHT_SUFFIXES:
        raise WeightsError(
            f"{file} is a file; give the folder that holds {CONFIG_FILE}, or a weight file "
            f"({', '.join(sorted(WEIGHT_SUFFIXES))})"
        )


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > _MAX_HEADER and header < file.stat().st_size:
        raise WeightsError(
            f"{file} cannot be loaded safely: its header has {header:,} bytes, expected at most "
            f"{_MAX_HEADER:,}"
        )
    try:
        weights: dict[str, Tensor] = load_file(file)
    except (SafetensorError, TypeError) as error:  # TypeError: a size of more than 63 bits
        raise WeightsError(
            f"{_name_and_size(file)} is truncated or damaged: {one_line(error)}"
        ) from error
    return weights


def _tensors(values: Any, file: Path) -> dict[str, Tensor]:
    for section in _SECTIONS:
        if isinstance(values, Mapping) and isinstance(values.get(section), Mapping):
            values = values[section]
    if not isinstance(values, Mapping):
        raise WeightsError(f"{file} holds a {kind(values)}; expected a mapping of names to weights")
    weights: dict[str, Tensor] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray | np.generic):
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        if isinstance(value, Tensor):
            # A damaged file may have any bytes, but PyTorch assumes that a bool is 0 or 1.
            weights[str(name)] = (
                value.view(torch.uint8).ne(0) if value.dtype == torch.bool else value
            )
    if not weights:
        names = [printable(str(name)) for name in list(values)[:5]]
        raise WeightsError(f"{file} holds no weights; its entries are {sorted(names)}")
    return weights


def _name_and_size(file: Path) -> str:
    return f"{file} ({file.stat().st_size:,} bytes)"
