"""Command-line options, fixtures and summary of the benchmarks; see harness/plugin.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent))

from harness.memory import HEAP_SETTINGS
from harness.plugin import Comparisons, operation_of
from harness.report import describe_machine, summarize

KEY = pytest.StashKey[Comparisons]()
QUICK_PROVIDERS = ("native", "native-bf16", "reference", "original")
NOT_QUICK = "training_step"
"""Left out of timed `--quick` runs: one training step of a whole model takes longer than the first
cases of all operations together.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mfkernels benchmarks")
    group.addoption(
        "--quick",
        action="store_true",
        help="run only the first case of each operation, without peers or whole training steps",
    )
    group.addoption("--seconds", type=float, default=2.0, help="seconds per case (default: 2)")
    group.addoption("--threads", type=int, default=2, help="CPU threads (default: 2)")
    group.addoption(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    group.addoption(
        "--reuse-pages", action="store_true", help="keep freed heap pages mapped (glibc)"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--reuse-pages") and "GLIBC_TUNABLES" not in os.environ:
        command = [sys.executable, "-m", "pytest", *config.invocation_params.args]
        os.execve(sys.executable, command, {**os.environ, **HEAP_SETTINGS})
    torch.set_num_threads(config.getoption("--threads"))
    device = torch.device(config.getoption("--device"))
    seconds = 0.0 if config.getoption("--quick") else config.getoption("--seconds")
    config.stash[KEY] = Comparisons(device, seconds)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        timed = not config.getoption("--benchmark-disable")
        kept = [
            item
            for item in items
            if _is_quick(item) and not (timed and operation_of(item) == NOT_QUICK)
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[KEY].select(session.items)


def _is_quick(item: pytest.Item) -> bool:
    function: Any = item
    params = getattr(getattr(function, "callspec", None), "params", {})
    marks = [m for m in function.iter_markers("parametrize") if m.args[0] == "case"]
    return not marks or (
        params["case"] == marks[0].args[1][0] and params["provider"] in QUICK_PROVIDERS
    )


@pytest.fixture
def comparisons(request: pytest.FixtureRequest) -> Comparisons:
    return request.config.stash[KEY]


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["mfkernels"] = describe_machine(config.stash[KEY].device)


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: object, output_json: dict[str, Any]
) -> None:
    for row in output_json["benchmarks"]:
        # Up to thousands of raw timings per row; the quantiles are enough.
        row["stats"].pop("data", None)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    summarize(terminalreporter, config.stash[KEY])
