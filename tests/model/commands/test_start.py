"""What is imported when: help, mistakes and shell completion must not wait for PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from helpers.command_line import without_reader
from PIL import Image

import maskformer
from maskformer.cli import app
from maskformer.cli.app import data_app
from maskformer.cli.options import Command
from maskformer.config.choices import Backend
from mfkernels import backend

PROGRAM = """
import json, os, sys
from maskformer.cli import main
for line in sys.stdin:
    arguments, environment, *files = json.loads(line)
    if os.fork() == 0:
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
        os.environ |= environment
        sys.argv = ["maskformer", *arguments]
        try:
            main()
        finally:
            slow = {"torch", "torchvision", "timm", "transformers", "scipy", "mfkernels"}
            print("imported:", *sorted(slow & sys.modules.keys()), file=sys.stderr)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""

Answer = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def starts() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported the command line, and no more; each command runs in a fork."""
    command = [sys.executable, "-c", PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield process


@pytest.fixture
def answer(starts: subprocess.Popen[str], tmp_path: Path) -> Answer:
    """Gives back the exit code, what was printed, and to standard error, with slow imports last."""
    assert starts.stdin is not None
    assert starts.stdout is not None
    send, receive = starts.stdin, starts.stdout

    def call(*arguments: str, **environment: str) -> tuple[int, str, str]:
        out, err = tmp_path / "out", tmp_path / "err"
        print(json.dumps([arguments, environment, str(out), str(err)]), file=send, flush=True)
        return int(receive.readline()), out.read_text(), err.read_text()

    return call


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("--help", 0, "evaluate"),
        ("", 2, "evaluate"),  # the help too
        ("train --help", 0, "--overwrite"),
        ("train --rezume", 2, "--rezume"),
        ("--version", 0, "maskformer 0."),
        ("train --lr 0.1", 2, "--lr is a value of the recipe"),
        ("train --lr 0.1", 2, "KEY=VALUE, without dashes: train.lr=0.1\n"),
        ("train --batch-size=8", 2, "dashes: train.batch_size=8 or eval.batch_size=8\n"),
        ("train --train.lr 3", 2, "dashes: train.lr=3\n"),
        ("train --learning-rate 1", 2, "dashes: train.lr=1\n"),
        ("train --device cpu", 2, "--device is written --cpu (train) or --device"),
        ("train --config x --out y", 2, "--out is written --output FOLDER\n"),
        ("predict a.png model.x=1 --checkpoint x --output y", 1, "the checkpoint determines"),
        ("train --gpus 2", 2, "--gpus is written torchrun --nproc-per-node N"),
        ("train --crop", 2, "dashes: data.augmentation.crop=...\n"),
        ("train --querys 5 --cpu", 2, "dashes: model.decoder.queries=5\n"),
        ("train", 2, "--config is needed"),
        ("train quickstart", 2, "--config is needed: --config quickstart\n"),
        ("data check /dev", 2, "maskformer init /dev writes a recipe"),
        ("train --weights x", 2, "--output FOLDER"),
        ("predict predict.opacity=0 --checkpoint x --out y", 2, "no images are given"),
        (
            "predict a.png model.x=1 --checkpoint x --out y",
            1,
            "the checkpoint determines the model",
        ),
        ("evaluate --checkpoint x predict.tile=64", 1, "predict.tile: no effect on evaluation"),
        ("evaluate --checkpoint x train.lr=1", 1, "train.lr: no effect on evaluation"),
        ("train --config quikstart", 1, "did you mean 'quickstart'?"),
        ("train --config quickstart train.stepz=1", 1, "did you mean 'train.steps'?"),
        ("predict photo.jpg", 2, "--checkpoint"),
        ("convert a b --to onnx", 2, "onnx"),
        ("data --help", 0, "check"),
        ("data", 2, "check"),
        ("data check --help", 0, "checks/<config>"),
        ("data check", 2, "--config is needed"),
        ("data check --config camvid data.clases=1", 1, "did you mean 'data.classes'?"),
        ("data check --classes 3", 2, "dashes: data.classes=3\n"),
        ("info", 0, "ade20k/r50"),
        ("info quickstart --size 96", 2, "HEIGHTxWIDTH"),
        ("--show-completion bash", 0, "complete -o default"),
    ],
)
def test_answers_without_pytorch(answer: Answer, arguments: str, code: int, text: str) -> None:
    # Otherwise Typer looks for the shell among the parent processes.
    found, out, err = answer(*arguments.split(), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert found == code
    assert text in out + err
    assert err.endswith("imported:\n")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("train --config quickstart --output=", "--output"),
        ("train --weights= --output x", "--weights"),
        ("train --config=", "--config"),
        ("evaluate --checkpoint=", "--checkpoint"),
        ("evaluate --checkpoint x --output=", "--output"),
        ("evaluate --checkpoint x --device=", "--device"),
        ("predict a.png --checkpoint x --out=", "--out"),
        ("predict a.png EMPTY --checkpoint x --output y", "IMAGE"),
        ("init EMPTY", "FOLDER"),
        ("init x --output=", "--output"),
        ("info EMPTY", "CONFIG"),
        ("data check --config quickstart --output=", "--output"),
        ("data prepare ade20k_full EMPTY", "ROOT"),
        ("convert x EMPTY --to hf", "TARGET"),
        ("export EMPTY x.onnx", "SOURCE"),
    ],
)
def test_an_empty_text_is_no_path(answer: Answer, arguments: str, name: str) -> None:
    """As `--output "$OUT"` gives it where OUT is not set; Python reads it as the current folder."""
    given = ["" if part == "EMPTY" else part for part in arguments.split()]
    code, _, err = answer(*given)
    assert code == 2
    assert name.lower() in err.lower().partition("invalid value for ")[2].partition(":")[0]
    assert "it is empty" in err
    assert "imported:\n" in err


def test_every_command_refuses_empty_texts() -> None:
    commands = [*app.registered_commands, *data_app.registered_commands]
    assert {command.cls for command in commands} == {Command}


def test_no_suggestion_without_a_key(answer: Answer) -> None:
    _, _, err = answer("train", "--rezume")
    assert "--rezume" in err
    assert "recipe" not in err


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "info", "info quickstart --keys", "init FOLDER --output -"]
)
def test_a_reader_that_is_gone_is_no_bug(arguments: str, tmp_path: Path) -> None:
    """As of `maskformer info | head`."""
    for file in (tmp_path / "images/a.png", tmp_path / "labels/a.png"):
        file.parent.mkdir()
        Image.new("L" if file.parent.name == "labels" else "RGB", (8, 8)).save(file)
    given = arguments.replace("FOLDER", str(tmp_path)).split()
    assert without_reader("-m", "maskformer", *given) == ""


def test_a_command_in_a_process_of_its_own() -> None:
    """Other tests have imported everything long before a command runs."""
    command = [sys.executable, "-m", "maskformer", "info", "quickstart", "--size", "96x96"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "backbone" in result.stdout


@pytest.mark.parametrize(
    ("environment", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_waiting_threads_leave_the_cpu_to_others(environment: dict[str, str], spins: str) -> None:
    """Set before PyTorch is there, and never over what a user chose."""
    code = """
import atexit, os, sys
from maskformer.cli import main
atexit.register(lambda: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules))
sys.argv = ["maskformer", "--help"]
main()
"""
    rest = {key: value for key, value in os.environ.items() if not key.startswith(("OMP", "GOMP"))}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=rest | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == f"{spins} False"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("maskformer tr", ["train"]),
        ("maskformer train --config quick", ["quickstart"]),
        ("maskformer evaluate -c ade20k/r", ["ade20k/r101", "ade20k/r101c", "ade20k/r50"]),
        ("maskformer da", ["data"]),
        ("maskformer data c", ["check"]),
        ("maskformer data check --config quick", ["quickstart"]),
        ("maskformer info cam", ["camvid", "camvid_lite0", "camvid_r50"]),
        ("maskformer train --config ./mine", []),  # bash goes on with files
        ("maskformer predict --mode p", ["panoptic"]),
    ],
)
def test_completion_offers_recipes(answer: Answer, line: str, expected: list[str]) -> None:
    last = str(len(line.split()) - 1)
    environment = {"COMP_WORDS": line, "COMP_CWORD": last, "_MASKFORMER_COMPLETE": "complete_bash"}
    _, out, err = answer(**environment)
    assert out.split() == expected
    assert err == "imported:\n"


@pytest.mark.parametrize(
    ("first", "package", "absent"),
    [
        ("sys", "maskformer", {"torch", "timm", "pydantic"}),
        ("torch", "mfkernels", {"triton", "scipy", "pydantic"}),
        ("sys", "maskformer.commands.init", {"torchvision", "timm"}),
        ("sys", "maskformer.commands.data_prepare", {"torchvision", "timm"}),
    ],
)
def test_a_package_imports_only_what_it_needs(first: str, package: str, absent: set[str]) -> None:
    code = (
        f"import sys, {first}; before = set(sys.modules); import {package};"
        f"print({absent} & (sys.modules.keys() - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


def test_public_names_are_there() -> None:
    for name in maskformer.__all__:
        assert getattr(maskformer, name).__name__ == name
    assert set(maskformer.__all__) <= set(dir(maskformer))
    with pytest.raises(AttributeError, match="module 'maskformer' has no attribute 'Maskformer'"):
        _ = maskformer.Maskformer


def test_backends_are_those_of_mfkernels() -> None:
    assert get_args(Backend) == get_args(backend.Backend)


def test_an_option_of_other_commands_is_not_answered_by_itself(answer: Answer) -> None:
    code, _, err = answer("convert", "a", "b", "--output", "x")
    assert code == 2
    assert "is written" not in err


@pytest.mark.parametrize("options", [[], ["--traceback"]])
def test_warnings_do_not_quote_the_program(options: list[str]) -> None:
    """Pillow's warning of many pixels is not printed, because there is a limit of our own."""
    program = """
import io, warnings
from PIL import Image
from maskformer.cli import run
def app():
    warnings.warn("an image has\\x1b many segments")
    Image.new("L", (5, 4)).save(file := io.BytesIO(), "PNG")
    Image.MAX_IMAGE_PIXELS = 10
    Image.open(file)
run.app = app
run.main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, check=True
    )
    if options:
        assert ended.stderr.startswith("<string>:6: UserWarning: an image has")
        assert "decompression bomb" not in ended.stderr
    else:
        assert ended.stderr == "warning: an image has\\x1b many segments\n"
