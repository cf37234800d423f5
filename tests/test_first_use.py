"""The first call of a kernel tries it on a small problem; CPUs take part in these tests alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.strategies import Case

from mfkernels import backend, mask_loss, matching_cost, use_backend
from mfkernels.backend import BackendError
from mfkernels.fallback import KernelError
from mfkernels.selfcheck import first_use

CASE = Case(counts=(3, 2), queries=9, channels=16, low=(12, 11), size=(24, 22))
MATCHES = torch.tensor([[[0, 1, 2], [3, 4, -1]]])

pytestmark = pytest.mark.skipif(
    not backend.part("cpu").usable, reason=str(backend.part("cpu").problem)
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a user who has not called anything yet."""
    monkeypatch.setattr(first_use, "DEVICE_TYPES", ("cpu",))
    monkeypatch.setattr(first_use, "_settled", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(first_use.VARIABLE, "1")
    backend.failures.clear()
    yield tmp_path / "mfkernels" / "first_use"
    backend.failures.clear()


class Counted:
    """An operator that counts its calls and may be off."""

    def __init__(self, name: str, factor: float = 1.0) -> None:
        self.operator, self.factor = getattr(torch.ops.mfkernels, name), factor
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        found = self.operator(*arguments)
        if isinstance(found, torch.Tensor):
            return self.factor * found
        return [self.factor * x for x in found]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counted]:
    def replace(name: str, factor: float = 1.0) -> Counted:
        operator = Counted(name, factor)
        monkeypatch.setattr(torch.ops.mfkernels, name, operator)
        return operator

    return replace


def losses() -> torch.Tensor:
    _, embed, features = CASE.predictions()
    return torch.stack(
        mask_loss(embed, features, CASE.targets(), MATCHES.expand(CASE.layers, 2, 3))
    )


def forget() -> None:
    """As a new process."""
    first_use._settled.clear()
    backend.failures.clear()


def verdicts(cache: Path) -> list[dict[str, Any]]:
    assert not [file for file in cache.iterdir() if file.suffix != ".json"]
    return [json.loads(file.read_text()) for file in cache.iterdir()]


def test_a_kernel_is_tried_once_and_remembered(
    counted: Callable[..., Counted], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with use_backend("reference"):
        expected = losses()
        assert not cache.exists(), "nothing native was called"
    operator = counted("mask_loss")
    torch.testing.assert_close(losses(), expected)
    tried = operator.calls
    assert tried == 4, "factors in two layouts and dense logits of a small problem, and the call"
    losses()
    assert operator.calls == tried + 1
    (verdict,) = verdicts(cache)
    assert verdict["problem"] == ""
    assert verdict["kernel"]["operation"] == "mask_loss"
    assert torch.__version__ in verdict["kernel"]["versions"]
    forget()
    losses()
    assert operator.calls == tried + 2, "another process reads the verdict"
    assert not caplog.records


def test_a_wrong_kernel_is_found(
    counted: Callable[..., Counted], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with use_backend("reference"):
        expected = losses()
    operator = counted("mask_loss", factor=1.01)
    for _ in range(2):
        torch.testing.assert_close(losses(), expected)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "mask_loss: its kernel failed on cpu: on first use, " in record.message
    assert "in float32 gave a wrong result: result 0 is off by" in record.message
    assert str(cache) in record.message, "where the verdict is, to delete it"
    forget()
    calls = operator.calls
    torch.testing.assert_close(losses(), expected)
    assert operator.calls == calls, "another process believes the verdict"
    forget()
    with use_backend("native"), pytest.raises(BackendError, match="gave a wrong result"):
        losses()


def test_each_dtype_and_form_is_tried(counted: Callable[..., Counted], cache: Path) -> None:
    operator = counted("matching_cost")
    logits, embed, features = CASE.predictions()
    for dtype in (torch.float32, torch.bfloat16):
        given = [x.to(dtype) for x in (logits, embed, features)]
        matching_cost(*given, CASE.targets())
        matching_cost(*given, CASE.targets())
    assert operator.calls == 2 * (3 + 2)
    assert {v["kernel"]["dtype"] for v in verdicts(cache)} == {"float32", "bfloat16"}


def test_a_kernel_that_cannot_start(
    monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise KernelError("loss_kernel: OutOfResources: too much")

    monkeypatch.setattr(torch.ops.mfkernels, "mask_loss", refuse)
    with use_backend("reference"):
        expected = losses()
    torch.testing.assert_close(losses(), expected)
    assert len(caplog.records) == 1
    assert "OutOfResources: too much" in caplog.text
    assert not cache.exists(), "it may start tomorrow"


@pytest.mark.parametrize("circumstance", ["switched off", "cache is a file", "verdict is broken"])
def test_circumstances(
    circumstance: str,
    counted: Callable[..., Counted],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operator = counted("mask_loss")
    if circumstance == "switched off":
        monkeypatch.setenv(first_use.VARIABLE, "0")
    elif circumstance == "cache is a file":
        cache.parent.write_text("")
    else:
        losses()
        (file,) = cache.iterdir()
        file.write_text("{")
        forget()
        operator.calls = 0
    losses()
    assert operator.calls == (1 if circumstance == "switched off" else 4)


def test_it_is_not_disturbed_by_the_caller(counted: Callable[..., Counted], cache: Path) -> None:
    """No gradients, mixed precision, another default dtype; `torch.func` has only plain PyTorch."""
    counted("mask_loss")
    _, embed, features = CASE.predictions()
    targets, found = CASE.targets(), MATCHES.expand(CASE.layers, 2, 3)
    with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
        mask_loss(embed, features, targets, found)
    assert [v["problem"] for v in verdicts(cache)] == [""]
    forget()
    (next(cache.iterdir())).unlink()
    torch.func.vmap(lambda x: mask_loss(x, features, targets, found)[0])(embed[None])
    assert not list(cache.iterdir())


def test_the_verdict_is_for_these_versions(
    counted: Callable[..., Counted], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = counted("mask_loss")
    losses()
    forget()
    monkeypatch.setattr(first_use, "_versions", lambda: "others")
    operator.calls = 0
    losses()
    assert operator.calls == 4
    assert len(verdicts(cache)) == 2
