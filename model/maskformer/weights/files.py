"""Tensors out of files, and files that are complete or absent."""

from __future__ import annotations

import argparse
import errno
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskformer import writing
from maskformer.weights.unpickle import read_pickle
from maskformer.writing import replace_file as replace_file

_SECTIONS = ("model_ema", "state_dict_ema", "model", "state_dict")
_HARMLESS: list[Any] = [
    argparse.Namespace,  # the command line in training checkpoints
    np.dtype,  # and their scores
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]
"""What else than tensors and containers training checkpoints hold; none of it is code."""

WEIGHT_SUFFIXES = frozenset({".safetensors", ".pkl", ".pth", ".pt", ".bin"})


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The entries of a weight file, on the CPU. Nothing pickled in it is run.

    Of a training checkpoint, the entries of the model count, averaged ones first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is truncated, holds code, or holds no tensors.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {file.name}")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    values = read_pickle(file) if file.suffix == ".pkl" else _read_torch(file)
    return _tensors(values, file)


def read_sharded(index: Path) -> dict[str, Tensor]:
    """The entries of all files that a `*.index.json` of `transformers` names.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the index or a file is damaged, or an entry is in no file.
    """
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index} is damaged: it has no weight_map")
    weights: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in where.values()}):
        if Path(name).name != name:
            raise ValueError(f"{index} names the file '{name}' outside its folder")
        weights |= read_tensors(index.parent / name)
    absent = sorted(set(where) - set(weights))
    if absent:
        raise ValueError(f"{index} lists {len(absent)} entries that no file holds: {absent[0]}")
    return weights


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged or holds something else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {file.name}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a mapping, got {type(values).__name__}")
    return values


def write_tensors(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a `.safetensors` file that PyTorch and `transformers` read.

    Raises:
        OSError: the file cannot be written; an old one stays.
    """
    # Pieces of one tensor share its memory, which the format does not know.
    ready = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }

    def save(partial: Path) -> None:
        try:
            save_file(ready, partial, metadata={"format": "pt"})
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error

    replace_file(file, save)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Writes a mapping.

    Raises:
        OSError: the file cannot be written; an old one stays.
    """
    writing.write_json(file, values, indent=2)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{_described(file)} is truncated or damaged: {error}") from error
    return weights


def _read_torch(file: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{file} is refused: it names {named[1]}, which is code; only tensors and plain "
                "containers are read"
            ) from None
        raise ValueError(f"{_described(file)} is truncated or damaged") from error
    except Exception as error:  # a broken archive raises any type
        raise ValueError(
            f"{_described(file)} is truncated or damaged: {_first_line(error)}"
        ) from error


def _tensors(values: Any, file: Path) -> dict[str, Tensor]:
    for section in _SECTIONS:
        if isinstance(values, Mapping) and isinstance(values.get(section), Mapping):
            values = values[section]
    if not isinstance(values, Mapping):
        raise ValueError(f"{file} holds a {type(values).__name__}; expected weights by name")
    weights: dict[str, Tensor] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray | np.generic):
            weights[str(name)] = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        elif isinstance(value, Tensor):
            weights[str(name)] = value
    if not weights:
        raise ValueError(f"{file} holds no weights; its entries are {sorted(map(str, values))[:5]}")
    return weights


def _described(file: Path) -> str:
    return f"{file} ({file.stat().st_size:,} bytes)"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
