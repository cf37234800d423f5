"""Every benchmark runs and is right; a wrong result has no speed, whatever it would have been."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.repository import ROOT

BENCHMARKS = ROOT / "benchmarks"
PROBLEM = """
import time
import torch
from harness.comparison import Comparison, Floor, Provider, Series
from harness.laps import Laps
from harness.plugin import comparison_test

x = torch.arange(6.0)
laps = Laps(x.device)

def absent():
    import a_peer_that_nobody_has

def slow():
    time.sleep(0.02)
    return x.sum()

def rounded():
    laps.start()
    first = x[:3].sum()
    laps.mark("half")
    laps.mark("nothing")
    both = first + x[3:].sum()
    laps.mark("half")
    return both + 1e-3

def make(case, device, shrink):
    return Comparison(
        {
            "native": lambda: Provider(lambda: x.sum()),
            "native-rounded": lambda: Provider(rounded, laps=laps, tolerance=1e-2),
            "reference": lambda: Provider(slow),
            "broken": lambda: Provider(lambda: x.sum() + 1e-3),
            "absent": absent,
        },
        truth=lambda: [x.double().sum()],
        tolerance=1e-6,
        floor=Floor(6, 24),
        given=[x],
        series=Series("sum over sizes", {"one": 1, "two": 2}[case.split()[0]], expected=1),
        images=3,
    )

test_sum = comparison_test(
    ["one 6", "two 6"],
    ["native", "native-rounded", "reference", "broken", "absent"],
    make,
)
"""


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    path = [str(ROOT), str(ROOT / "model"), str(BENCHMARKS), str(cwd)]
    # pytest-benchmark measures nothing in a worker of pytest-xdist, which this process may be.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)],
        cwd=cwd,
        env={**own, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_every_benchmark_is_right_once() -> None:
    result = run("benchmarks", "--quick", "--benchmark-disable", "--verbose")
    assert result.returncode == 0, result.stdout[-4000:]
    passed = {line.partition("::")[0] for line in result.stdout.splitlines() if "PASSED" in line}
    files = {f"benchmarks/{file.name}" for file in BENCHMARKS.glob("bench_*.py")}
    assert passed == files


@pytest.fixture(scope="module")
def broken_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a run says in which one provider is wrong and one is not installed, and its JSON."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "bench_sum.py").write_text(PROBLEM)
    (folder / "conftest.py").write_text("pytest_plugins = ['bench_options']\n")
    (folder / "bench_options.py").write_text((BENCHMARKS / "conftest.py").read_text())
    file = folder / "run.json"
    result = run(
        *("bench_sum.py", "--benchmark-only", "--seconds", 0.2, "--benchmark-json", file),
        *("-rs", "-o", "python_files=bench_*.py", "-p", "bench_options"),
        cwd=folder,
    )
    return result.stdout + result.stderr, file


def test_what_is_wrong_or_missing_has_no_speed(broken_run: tuple[str, Path]) -> None:
    shown, file = broken_run
    rows = json.loads(file.read_text())["benchmarks"]
    assert sorted(row["name"] for row in rows) == [
        f"test_sum[{case}-{provider}]"
        for case in ("one", "two")
        for provider in ("native-rounded", "native", "reference")
    ]  # fmt: skip
    assert "broken is off by" in shown
    assert "a_peer_that_nobody_has is not installed" in shown
    assert "2 failed, 6 passed, 2 skipped" in shown


def test_rows_say_what_explains_the_times(broken_run: tuple[str, Path]) -> None:
    shown, file = broken_run
    content = json.loads(file.read_text())
    assert content["machine_info"]["mfkernels"]["threads"] == 2
    rows = {row["name"]: row for row in content["benchmarks"]}
    slow, fast = rows["test_sum[one-reference]"], rows["test_sum[one-native]"]
    assert slow["group"] == "sum: one 6"
    assert slow["stats"]["min"] >= 0.02
    assert slow["stats"]["median"] * 1e3 == pytest.approx(slow["extra_info"]["p50_ms"], rel=0.2)
    assert fast["extra_info"]["times_faster_than_reference"] > 2
    assert fast["extra_info"]["floor_ms"] > 0
    assert "data" not in fast["stats"]
    assert "sum: one 6" in shown.partition("mfkernels against the best other")[2]
    assert "sum: one 6 rounded" in shown.partition("mfkernels against the best other")[2]
    assert re.search(r"sum over sizes +native .* at most 1 expected", shown.partition("growth")[2])
    assert re.search("one 6, native-rounded .* images/s .* half ., nothing . ms", shown)
    for row in rows.values():
        info = row["extra_info"]
        assert info["images_per_s"] == pytest.approx(3e3 / info["p50_ms"])
        assert info["series"]["size"] == (1 if "one" in row["name"] else 2)
    assert rows["test_sum[one-native-rounded]"]["extra_info"]["parts_ms"].keys() == {
        "half",
        "nothing",
    }


def test_figures_hold_each_setting_and_series(
    broken_run: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS / "figures")
    committed = importlib.import_module("committed")
    _, file = broken_run
    machine, cases = committed.read_cases(file)
    assert machine.startswith("2 CPU threads")
    assert [case.name for case in cases] == ["one 6", "one 6, rounded", "two 6", "two 6, rounded"]
    assert all({*case.rows} == {"native", "reference"} for case in cases)
    (growth,) = committed.growths(committed.read_all_cases(file)[1])
    assert growth.expected == 1
    assert {*growth.points} == {"native", "native-rounded", "reference"}
    assert [size for size, _, _ in growth.points["reference"]] == [1, 2]
    first, second = (ms for _, ms, _ in growth.points["reference"])
    assert growth.slope("reference") == pytest.approx(math.log2(second / first))


@pytest.mark.parametrize("operation", ["bench_class_loss", "bench_mask_logits"])
def test_half_precision_moves_half_the_bytes(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    sizes = importlib.import_module("harness.inputs")
    (case, single), *_ = sizes.CPU_CASES.items()
    make = importlib.import_module(operation).make
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(sizes, "CASES", {case: replace(single, dtype=dtype)})
        moved.append(make(case, torch.device("cpu"), True).floor.bytes)
    assert moved[0] == 2 * moved[1]


def test_a_loss_against_the_committed_run_is_named(
    broken_run: tuple[str, Path], tmp_path: Path
) -> None:
    _, file = broken_run
    content = json.loads(file.read_text())
    for row in content["benchmarks"]:
        if row["name"] == "test_sum[two-native]":
            row["extra_info"]["p50_ms"] *= 2
    slower = tmp_path / "slower.json"
    slower.write_text(json.dumps(content))
    command = [sys.executable, str(BENCHMARKS / "figures" / "compare.py")]
    environment = {**os.environ, "PYTHONSAFEPATH": ""}  # it imports its neighbours
    for files, code in (((file, file), 0), ((slower, file), 1)):
        result = subprocess.run(
            [*command, *files], env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == code, result.stderr
        assert ("LOST MORE THAN 10%: sum: two 6" in result.stdout) == bool(code)
        assert "LOST MORE THAN 10%: sum: one 6" not in result.stdout
        listed = re.findall(r"^sum: (.+?)  ", result.stdout, re.MULTILINE)
        assert listed == ["one 6", "one 6, rounded", "two 6", "two 6, rounded"]
