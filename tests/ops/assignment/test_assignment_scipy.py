"""SciPy's own tests of linear_sum_assignment, run against ours."""

import pytest

import mfkernels

scipy_tests = pytest.importorskip("scipy.optimize.tests.test_linear_assignment")
from scipy.optimize.tests.test_linear_assignment import *  # noqa: E402, F403


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scipy_tests, "linear_sum_assignment", mfkernels.linear_sum_assignment)


def test_the_tests_call_our_function() -> None:
    called = scipy_tests.test_constant_cost_matrix.__globals__["linear_sum_assignment"]
    assert called is mfkernels.linear_sum_assignment
