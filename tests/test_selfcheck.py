"""`python -m mfkernels check`: the kernels of this machine are right, broken ones are found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mfkernels import backend, selfcheck
from mfkernels.__main__ import main
from mfkernels.fallback import KernelError
from mfkernels.selfcheck.checks import _error, _wrong

CPU = torch.device("cpu")
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
        assert others == {"class_loss"}, "PyTorch's own kernels serve it on a CPU"
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
    ],
)
def test_mistakes(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mfkernels", "check", *arguments])
    with pytest.raises(SystemExit, match=said):
        main()


def test_the_rule() -> None:
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
    result = truth.float()
    assert not list(_wrong([result], [result], [truth]))
    off = result + torch.tensor([0, 1e-4])
    assert list(_wrong([off], [result], [truth]))
    assert not list(_wrong([off], [off], [truth])), "plain PyTorch is as wrong"
    assert list(_wrong([result * float("nan")], [result], [truth]))
    labels = torch.zeros(10_000, dtype=torch.int64)
    other = labels.clone()
    other[:5] = 1
    assert not list(_wrong([other], [labels], [labels]))
    other[:20] = 1
    assert list(_wrong([other], [labels], [labels]))
    assert _error(truth[:0], truth[:0]) == 0
