"""Importing the names of a package when they are first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def imported_on_use(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package. The keys of `modules` are relative to `maskformer`,
    the values are the names in each module.
    """

    def getattribute(name: str) -> Any:
        for module, names in modules.items():
            if name in names:
                return getattr(import_module(f"maskformer.{module}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return getattribute
