"""Tests of an operation run with each backend that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mfkernels import use_backend
from mfkernels.backend import why_not_native

native_only = pytest.mark.parametrize("served_by", ["native"], indirect=True)


def each_backend(operation: str, *, forced: bool = True) -> Any:
    """A fixture `served_by`: every test of a module runs with both backends.

    Args:
        operation: what is tested; without a native kernel for it, those runs are skipped.
        forced: off where other operations of a test may have no native kernel.
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
