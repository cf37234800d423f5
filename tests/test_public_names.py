"""All that others write down: names and signatures, operators, recipe keys, the command line.

`public_names.txt` lists them, one per line, so that a lost name fails a test and a new one shows in
a diff. `python tests/test_public_names.py` writes the file anew; a line that goes away breaks
somebody's program.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
import typer.main
from pydantic import BaseModel

import mfkernels
from maskformer import cli
from mfkernels import backend

FILE = Path(__file__).with_name("public_names.txt")
MODULES = (
    "mfkernels",
    "mfkernels.integrations.detectron2",
    "mfkernels.integrations.transformers",
    "maskformer",
)
OF_TRITON = {"operator class_loss", "operator class_loss_backward"}
"""There only where Triton is."""


def signature(function: Any) -> str:
    """Names, kinds and defaults of the parameters; types go by many spellings."""
    parameters = inspect.signature(function).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(bare))


def names_of_class(name: str, kind: type) -> Iterator[str]:
    try:
        # The fields of a section of a recipe are listed as keys.
        yield name if issubclass(kind, BaseModel) else f"{name}{signature(kind)}"
    except ValueError:  # such as an exception's
        yield name
    for base in kind.__mro__:
        if not base.__module__.startswith(("mfkernels", "maskformer")):
            continue
        for attribute, value in vars(base).items():
            if attribute.startswith("_") or (
                issubclass(kind, BaseModel) and attribute[:6] == "model_"
            ):
                continue
            if isinstance(value, (classmethod, staticmethod)):
                value = value.__func__
            called = signature(value) if inspect.isfunction(value) else ""
            yield f"{name}.{attribute}{called}"
        for attribute in getattr(base, "__annotations__", {}):
            if not attribute.startswith("_"):
                yield f"{name}.{attribute}"


def names_of_module(module_name: str) -> Iterator[str]:
    module = importlib.import_module(module_name)
    for public in module.__all__:
        value, name = getattr(module, public), f"{module_name}.{public}"
        if inspect.isclass(value):
            yield from names_of_class(name, value)
        else:
            yield f"{name}{signature(value)}"


def names_of_recipes(section: type[BaseModel], prefix: str = "recipe ") -> Iterator[str]:
    for key, field in section.model_fields.items():
        yield prefix + key
        kinds = [field.annotation]
        while kinds:
            kind = kinds.pop()
            kinds += get_args(kind)
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                yield from names_of_recipes(kind, f"{prefix}{key}.")


def names_of_command_line(group: Any = None, prefix: str = "maskformer") -> Iterator[str]:
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():
        yield f"{prefix} {name}"
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                yield f"{prefix} {name} {option}"
        if hasattr(command, "commands"):
            yield from names_of_command_line(command, f"{prefix} {name}")


def names_of_operators() -> Iterator[str]:
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("mfkernels::"):
            yield f"operator {name.removeprefix('mfkernels::')}"


def public_names() -> set[str]:
    config = importlib.import_module("maskformer").Config
    names = {"mfkernels.__version__", "maskformer.__main__", "mfkernels.__main__"}
    for module in MODULES:
        names.update(names_of_module(module))
    names.update(names_of_recipes(config))
    names.update(names_of_command_line())
    names.update(names_of_operators())
    return names


def test_no_name_is_lost_and_every_name_is_listed() -> None:
    listed, found = set(FILE.read_text().splitlines()), public_names()
    lost, new = listed - found, found - listed
    if backend.part("triton").problem is not None:
        lost -= OF_TRITON
    if backend.part("cpu").problem is not None:
        lost = {name for name in lost if not name.startswith("operator ")}
    assert not lost
    assert not new, "a new name: write the list anew"


def test_no_function_hides_a_module() -> None:
    modules = {
        module.name for module in pkgutil.iter_modules([str(Path(mfkernels.__file__).parent)])
    }
    assert not modules & set(mfkernels.__all__)


if __name__ == "__main__":
    FILE.write_text("\n".join(sorted(public_names())) + "\n")
