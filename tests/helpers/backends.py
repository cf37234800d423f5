"""Runs the tests of an operation with each backend that implements it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mfkernels import use_backend
from mfkernels.backend import why_not_native

native_only = pytest.mark.parametrize("served_by", ["native"], indirect=True)


def each_backend(operation: str, *, forced: bool = True) -> Any:
    """An autouse fixture `served_by` that runs every test of a module with both backends.

    Args:
        operation: the operation under test; without a native kernel for it, native runs skip.
        forced: whether every operation must run natively. False if a test also uses operations
            that may lack a native kernel.
    """

    @pytest.fixture(params=["reference", "native"], autouse=True, name="served_by")
    def served_by(request: pytest.FixtureRequest) -> Iterator[str]:
        reason = why_not_native(operation, "cpu")
        if request.param == "native" and reason is not None:
            pytest.skip(reason)
        native = "native" if forced else "auto"
        with use_backend(native if request.param == "native" else "reference"):
            yield request.param

    return served_by
