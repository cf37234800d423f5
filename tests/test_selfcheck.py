"""`python -m mfkernels check`: the kernels of this machine are right, broken ones are found."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.repository import ROOT

from mfkernels import backend, selfcheck
from mfkernels.__main__ import main
from mfkernels.fallback import KernelError
from mfkernels.selfcheck import checks, command, predictions
from mfkernels.selfcheck.checks import _error, _result_problems
from mfkernels.selfcheck.inputs import SMALL, segments
from mfkernels.selfcheck.problems import Problem

CPU = torch.device("cpu")
PREDICTIONS = ROOT / "mfkernels" / "selfcheck" / "predictions.json"
MODEL = ROOT / "benchmarks" / "results" / "gpu_model.json"
BREAK = """
import sys, torch, warnings
import mfkernels
from mfkernels.__main__ import main

# A kernel that is wrong at one pixel, or that gives something else each time.
library = torch.library.Library("mfkernels", "IMPL")
calls = 0

def wrong(images, points):
    global calls
    calls += 1
    with mfkernels.use_backend("reference"):
        result = mfkernels.sample_points(images, points).clone()
    result.view(-1)[0] += {error}
    return result

library.impl("sample_points", wrong, "CPU", allow_override=True)
sys.argv = ["mfkernels", "check", "--device", "cpu", "--quick", "--operation", "sample_points"]
main()
"""


def test_everything_is_right_here() -> None:
    rows = list(selfcheck.check(CPU, quick=True))
    assert [row for row in rows if row.problem] == []
    served = {name for name, devices in backend.OPERATIONS.items() if "cpu" in devices}
    assert {row.operation for row in rows} == {*served, "criterion"}
    if backend.part("cpu").usable:
        others = {row.operation for row in rows if row.served != "native"}
        assert others == {"class_loss", "loss_sums"}, "PyTorch's own kernels serve them on a CPU"
        assert all(row.error is not None and row.error < 0.02 for row in rows)


def test_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    arguments = ["check", "--device", "cpu", "--operation", "assignment", "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["mfkernels", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    report = json.loads(file.read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert {row["form"] for row in report["rows"]} == {"20 x 100", "ragged", "100 x 20", "ties"}
    timed = [row for row in report["rows"] if row["ms"] is not None]
    assert len(timed) == len(report["rows"]) / 3
    shown = capsys.readouterr().out
    assert f"{len(report['rows'])} right, 0 wrong" in shown


@pytest.mark.skipif(not backend.part("cpu").usable, reason="needs the native library")
@pytest.mark.parametrize(
    ("error", "said"), [("1e-3", "result 0 is off by"), ("1e-7 * (calls % 2)", "not repeatable")]
)
def test_a_broken_kernel_is_found(error: str, said: str) -> None:
    command = [sys.executable, "-c", BREAK.format(error=error)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert said in result.stdout


@pytest.mark.skipif(not backend.part("cpu").usable, reason="needs the native library")
@pytest.mark.parametrize("operator", ["mask_loss", "mask_loss_backward"])
def test_a_kernel_that_cannot_start_is_found(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise KernelError("loss_kernel: OutOfResources: 160 KB: too much")

    monkeypatch.setattr(torch.ops.mfkernels, operator, refuse)
    if "backward" in operator:  # a thread of the GPU's, which knows no request
        monkeypatch.setattr("mfkernels.fallback.requested", lambda: "auto")
    try:
        rows = list(selfcheck.check(CPU, quick=True, operation="mask_loss"))
    finally:
        backend.failures.clear()
    assert all("OutOfResources: 160 KB: too much" in row.served + row.problem for row in rows)
    assert any(row.problem for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "nothing"], "error: --device nothing: "),
        (["--json", "no/such/folder/file.json"], "there is no folder no/such/folder"),
        (["--json", ""], "it is a folder, expected a file"),
    ],
)
def test_mistakes(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mfkernels", "check", *arguments])
    with pytest.raises(SystemExit, match=said):
        main()


@pytest.mark.parametrize("overlap", [False, True])
def test_both_forms_of_segments(overlap: bool) -> None:
    targets = segments(SMALL, torch.Generator().manual_seed(0), overlap=overlap)
    assert (targets.label_map is None) == overlap
    masks = torch.cat([targets.dense_masks(image) for image in range(SMALL.images)])
    assert masks.flatten(1).any(1).all()
    assert bool((targets.dense_masks(0).sum(0) > 1).any()) == overlap


def test_predictions_are_those_of_the_cost_model() -> None:
    shown = predictions.predicted_ms("NVIDIA H200", "criterion", "label map", "bfloat16")
    assert shown == json.loads(PREDICTIONS.read_text())["H200"]["bfloat16"]
    slice_ = "NVIDIA H200 MIG 1g.18gb"
    for gpu, operation, form in (
        ("Tesla T4", "criterion", "label map"),
        (slice_, "criterion", "label map"),
        ("NVIDIA H200", "mask_loss", "label map, factors"),
    ):
        assert predictions.predicted_ms(gpu, operation, form, "bfloat16") is None
    assert predictions.predicted_ms("NVIDIA H200", "criterion", "label map", "float16") is None


@pytest.mark.skipif(not MODEL.exists(), reason="the cost model's report is not in this checkout")
def test_predictions_are_current() -> None:
    expected: dict[str, dict[str, float]] = {}
    for row in json.loads(MODEL.read_text())["totals"]:
        for name, value in row.items():
            if row["case"] == "A" and name.startswith("predicted_ms_"):
                gpu = name.removeprefix("predicted_ms_")
                expected.setdefault(gpu, {})[row["dtype"]] = round(value, 3)
    assert json.loads(PREDICTIONS.read_text()) == expected


def test_the_table_shows_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    row = selfcheck.Row("criterion", "label map", "bfloat16", "native", "", 0.0, 0.0)
    timed = replace(row, ms=3.79, plain_ms=131.8, graph_ms=1.25, predicted_ms=1.02)
    command._print({}, [row, timed])
    shown = capsys.readouterr().out
    assert all(x in shown for x in ("in a graph", "predicted", "1.25", "1.02"))
    command._print({}, [replace(row, ms=3.79, plain_ms=131.8)])
    assert "predicted" not in capsys.readouterr().out


def test_the_rule() -> None:
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
    result = truth.float()
    assert not list(_result_problems([result], [result], [truth]))
    off = result + torch.tensor([0, 1e-4])
    assert list(_result_problems([off], [result], [truth]))
    assert not list(_result_problems([off], [off], [truth])), "plain PyTorch is as wrong"
    assert list(_result_problems([result * float("nan")], [result], [truth]))
    labels = torch.zeros(10_000, dtype=torch.int64)
    other = labels.clone()
    other[:5] = 1
    assert not list(_result_problems([other], [labels], [labels]))
    other[:20] = 1
    assert list(_result_problems([other], [labels], [labels]))
    assert _error(truth[:0], truth[:0]) == 0


def test_graphs_and_memory_are_those_of_the_checked_device(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []

    @contextlib.contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        current.append(wanted)
        yield
        current.pop()

    second = torch.device("cuda", 1)
    problem = Problem("assignment", "", lambda cost: [cost], [])
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(checks, "problems", lambda *_: [problem])
    monkeypatch.setattr(checks, "_check", lambda *_, timed: tuple(current))
    for row in selfcheck.check(second):
        assert row == (second,)
        assert not current
