"""Which backend serves a call, what is said about it, and life without any compiled library."""

from __future__ import annotations

import importlib.machinery
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.command_line import without_reader

import mfkernels
from mfkernels import backend, native
from mfkernels.__main__ import main

PACKAGE = Path(mfkernels.__file__).parent
CPU = torch.device("cpu")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No request from the environment, nothing logged yet."""
    monkeypatch.delenv("MFKERNELS_BACKEND", raising=False)
    monkeypatch.setattr(backend, "_logged", set())
    return monkeypatch


@pytest.fixture
def missing(fresh: pytest.MonkeyPatch) -> None:
    """As if `assignment` had no native kernel."""
    fresh.setitem(backend._reasons, ("assignment", "cpu"), "it was taken away")


def test_request_comes_from_the_block_then_the_environment(fresh: pytest.MonkeyPatch) -> None:
    assert backend.requested() == "auto"
    fresh.setenv("MFKERNELS_BACKEND", "reference")
    assert backend.requested() == "reference"
    with mfkernels.use_backend("native"):
        assert backend.requested() == "native"
        with mfkernels.use_backend("auto"):
            assert backend.requested() == "auto"
        assert backend.requested() == "native"
    assert backend.requested() == "reference"


def test_request_belongs_to_its_thread(fresh: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    with mfkernels.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backend.requested()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_a_block_of_another_thread_leaves_this_one_alone(fresh: pytest.MonkeyPatch) -> None:
    def ask_for_another() -> None:
        with mfkernels.use_backend("native"):
            pass

    with mfkernels.use_backend("reference"):
        thread = threading.Thread(target=ask_for_another)
        thread.start()
        thread.join()
        assert backend._latest == "reference"
    assert backend._latest is None


@pytest.mark.parametrize("reads_context", [True, False])
def test_compiled_code_follows_the_request(fresh: pytest.MonkeyPatch, reads_context: bool) -> None:
    if reads_context and not backend._COMPILER_READS_CONTEXT:
        pytest.skip("this PyTorch compiles nothing that reads a context variable")
    fresh.setattr(backend, "_COMPILER_READS_CONTEXT", reads_context)
    torch.compiler.reset()
    requested = torch.compile(
        lambda x: x + len(backend.requested()), backend="eager", fullgraph=True
    )
    seen = [int(requested(torch.zeros(())))]
    with mfkernels.use_backend("reference"):
        seen.append(int(requested(torch.zeros(()))))
        with mfkernels.use_backend("native"):
            seen.append(int(requested(torch.zeros(()))))
        seen.append(int(requested(torch.zeros(()))))
    seen.append(int(requested(torch.zeros(()))))
    assert seen == [len(name) for name in ("auto", "reference", "native", "reference", "auto")]


def test_unknown_names_are_refused(fresh: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ValueError, match="backend is 'fast', expected one of 'reference', 'native'"),
        mfkernels.use_backend("fast"),  # type: ignore[arg-type]
    ):
        pass
    fresh.setenv("MFKERNELS_BACKEND", "fast")
    with pytest.raises(ValueError, match="MFKERNELS_BACKEND is 'fast'"):
        backend.requested()
    with pytest.raises(ValueError, match="operation is 'sorting'"):
        backend.why_not_native("sorting", "cpu")


@pytest.mark.usefixtures("missing")
def test_fallback_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mfkernels"):
        assert backend.select("assignment", CPU) == "reference"
        assert backend.select("assignment", CPU) == "reference"
        assert backend.select("assignment", CPU, "the matrix is blue") == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        "assignment: runs in plain PyTorch (reference): it was taken away",
        "assignment: runs in plain PyTorch (reference): the matrix is blue",
    ]


@pytest.mark.usefixtures("missing")
def test_native_request_is_never_served_by_the_reference() -> None:
    with (
        mfkernels.use_backend("native"),
        pytest.raises(RuntimeError, match=r"assignment: the native backend .* it was taken away"),
    ):
        mfkernels.batch_linear_assignment(torch.zeros(2, 2))


def test_reference_request_is_silent(
    fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mfkernels"), mfkernels.use_backend("reference"):
        assert backend.select("assignment", CPU, "whatever") == "reference"
    assert not caplog.records


def test_every_operation_and_device_has_a_row(fresh: pytest.MonkeyPatch) -> None:
    explanation = mfkernels.explain()
    rows = {
        (operation, device): (choice, why)
        for operation, device, choice, why in explanation.operations
    }
    assert set(rows) == {(o, d) for o in backend.OPERATIONS for d in ("cpu", "cuda")}
    assert all(bool(why) == (choice != "native") for choice, why in rows.values())
    assert all(operation in str(explanation) for operation in backend.OPERATIONS)
    with mfkernels.use_backend("reference"):
        rows_of_reference = mfkernels.explain().operations
    assert {choice for *_, choice, _ in rows_of_reference} == {"reference"}


def test_device_types_without_kernels() -> None:
    assert "device type 'mps'" in str(backend.why_not_native("assignment", "mps"))
    assignment = mfkernels.batch_linear_assignment(torch.zeros(2, 3, device="meta"))
    assert assignment.shape == (2,)


def test_a_library_that_cannot_be_loaded_is_explained(tmp_path: Path) -> None:
    for name in ("cpu", "cuda"):
        (tmp_path / f"_torch_{name}.so").write_bytes(b"not a library")
    parts = native.load_libraries(tmp_path)
    assert "cannot be loaded" in str(parts["cpu"].problem)
    assert "needs the cpu library" in str(parts["cuda"].problem)


def test_a_numpy_module_that_cannot_be_loaded_is_explained(tmp_path: Path) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / f"_numpy{suffix}").write_bytes(b"not a library")
    module, part = native.load_numpy_module(tmp_path)
    assert module is None
    assert "cannot be loaded" in str(part.problem)


def test_the_reason_of_the_build_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "native_build.json").write_text('{"cpu": "no compiler", "cuda": "no nvcc"}')
    parts = native.load_libraries(tmp_path)
    assert [part.problem for part in parts.values()] == ["no compiler", "no nvcc"]
    assert not native.load_libraries(tmp_path / "nowhere")["cpu"].usable


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def without_native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package as it is where nothing could be compiled."""
    folder = tmp_path_factory.mktemp("pure")
    ignore = shutil.ignore_patterns("*.so", "native_build.json", "__pycache__")
    shutil.copytree(PACKAGE, folder / "mfkernels", ignore=ignore)
    return folder


def test_without_native_code_triton_and_gpu(without_native: Path) -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch, mfkernels
assert not any(mfkernels.backend.part(name).usable for name in ("cpu", "cuda", "numpy"))
print(mfkernels.batch_linear_assignment(torch.tensor([[[4., 1.], [2., 0.]]])).tolist())
rows, columns = mfkernels.linear_sum_assignment([[4, 1], [2, 0]])
print(rows.tolist(), columns.tolist())
print(mfkernels.explain())
"""
    result = run_python(code, without_native, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == ["[[1, 0]]", "[0, 1] [1, 0]"]
    assert result.stdout.count("not compiled") >= 3


def test_without_native_code_a_native_request_is_an_error(without_native: Path) -> None:
    code = "import mfkernels; mfkernels.linear_sum_assignment([[1.0]])"
    result = run_python(code, without_native, MFKERNELS_BACKEND="native")
    assert result.returncode == 1
    assert "BackendError: assignment: the native backend was requested" in result.stderr


def test_module_prints_the_table() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mfkernels"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(mfkernels.explain())


@pytest.mark.parametrize(
    "argument", ["", "--help", "--version", "check --quick --operation conv3x3"]
)
def test_a_reader_that_is_gone_is_no_bug(argument: str) -> None:
    """As of `python -m mfkernels | head`."""
    assert without_reader("-m", "mfkernels", *argument.split()) == ""


@pytest.mark.parametrize(
    ("arguments", "backend", "code", "text"),
    [
        (["--help"], "auto", 0, "which backend runs each operation"),
        (["--version"], "auto", 0, f"mfkernels {mfkernels.__version__}"),
        (["foo"], "auto", 2, "invalid choice: 'foo'"),
        ([], "cuda", "error: MFKERNELS_BACKEND is 'cuda', expected one of", ""),
    ],
)
def test_module_answers_in_words(
    fresh: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    backend: str,
    code: int | str,
    text: str,
) -> None:
    fresh.setenv("MFKERNELS_BACKEND", backend)
    fresh.setattr("sys.argv", ["mfkernels", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert str(exit_.value.code).startswith(str(code))
    captured = capsys.readouterr()
    assert text in captured.out + captured.err
