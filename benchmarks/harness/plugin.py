"""Runs comparisons under pytest-benchmark: `test_x = comparison_test(CASES, PROVIDERS, make)`.

The first test of a case checks all selected providers and times them interleaved, so that drift of
the machine affects them alike. Each test then reports its own times to pytest-benchmark through a
clock that replays them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from harness.comparison import Comparison
from harness.measure import Outcome, checked, measure

Make = Callable[[str, torch.device, bool], Comparison]
"""Arguments: case, device, and whether to shrink the case, when only correctness is checked."""


class ReplayClock:
    """A clock that moves only when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = ReplayClock()


class Comparisons:
    """The comparisons of a pytest session: the selected providers and their results.

    Only the outcomes of the latest case are kept whole; `table` holds the figures of all cases.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device = device
        self.seconds = seconds
        self.selected: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.table: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
        self.wrong: list[str] = []
        self._key: tuple[str, str] | None = None
        self._outcomes: dict[str, Outcome] = {}

    def select(self, items: Iterable[pytest.Item]) -> None:
        """Record which providers will run, by operation and case."""
        for item in items:
            params = getattr(getattr(item, "callspec", None), "params", {})
            if "provider" in params:
                key = (operation_of(item), params["case"])
                self.selected[key].append(params["provider"])

    def outcome(self, key: tuple[str, str], provider: str, make: Make) -> Outcome:
        """The outcome of one provider; the first call for a case measures all selected ones."""
        if self._key != key:
            self._outcomes = {}
            comparison = make(key[1], self.device, False)
            self._outcomes = measure(comparison, self.selected[key], self.device, self.seconds)
            self._key = key
            for name, outcome in self._outcomes.items():
                if outcome.info is not None:
                    series = comparison.series and comparison.series._asdict()
                    outcome.info["series"] = series
                    self.table[key][name] = outcome.info
        return self._outcomes[provider]


def operation_of(item: Any) -> str:
    return item.originalname.removeprefix("test_")


def comparison_test(
    cases: Iterable[str], providers: Iterable[str], make: Make
) -> Callable[..., None]:
    """A test, parametrized by case and provider.

    Args:
        cases: names of the cases; the first word of each becomes the test's ID.
        providers: keys of `Comparison.providers`.
        make: builds the comparison of a case.
    """

    @pytest.mark.parametrize("provider", list(providers))
    @pytest.mark.parametrize("case", list(cases), ids=lambda case: case.split()[0])
    @pytest.mark.benchmark(timer=CLOCK)
    def test(
        benchmark: Any,
        comparisons: Comparisons,
        request: pytest.FixtureRequest,
        case: str,
        provider: str,
    ) -> None:
        operation = operation_of(request.node)
        benchmark.group = f"{operation}: {case}"
        try:
            if benchmark.disabled:
                benchmark(
                    _check_once, make(case, comparisons.device, True), provider, comparisons.device
                )
                return
            outcome = comparisons.outcome((operation, case), provider, make)
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed")
        if outcome.missing:
            pytest.skip(outcome.missing)
        if outcome.times is None:
            comparisons.wrong.append(f"{benchmark.group}: {provider} is {outcome.wrong}")
            pytest.fail(f"{provider} is {outcome.wrong}: no speed is reported", pytrace=False)
        benchmark.extra_info.update(outcome.info or {})
        times = iter(outcome.times.total)
        benchmark.pedantic(lambda: CLOCK.advance(next(times, 0.0)), rounds=len(outcome.times.total))

    return test


def _check_once(comparison: Comparison, provider: str, device: torch.device) -> None:
    """Check one provider on a shrunk case, without timing it (`--benchmark-disable`)."""
    outcomes, _ = checked(comparison, [provider], device)
    if provider in outcomes:
        if outcomes[provider].missing:
            pytest.skip(outcomes[provider].missing)
        pytest.fail(f"{provider} is {outcomes[provider].wrong}", pytrace=False)
