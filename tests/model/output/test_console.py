"""Lines and tables of a run."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from maskformer.output.console import Progress, class_table, duration, written

NAN = math.nan


def printed(work: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120).print(work)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 00 s"),
        (90, "1 min 30 s"),
        (3 * 3600 + 299, "3 h 04 min"),
        (50 * 3600, "2 d 02 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_tells_epoch_loss_parts_and_time_left() -> None:
    stream = io.StringIO()
    progress = Progress(console=Console(file=stream, width=300))
    values = {
        "loss": 4.0,
        "loss_ce": 1.0,
        "loss_mask": 0.05,
        "loss_dice": 2.0,
        "loss_ce_0": 9.0,
        "images_per_second": 8.0,
        "peak_memory_mb": 500.0,
        "lr": 1e-4,
        "epoch": 1.25,
    }
    with progress.training(0, 50):
        progress.log(10, values, 75.0)
        progress.log(20, {"loss": 1.0, "loss_sem_seg": 1.0, **dict(list(values.items())[5:8])})
        progress.log(30, {**values, "lr_backbone": 1e-5})
        progress.log(40, {**values, "lr_backbone": 1e-4})
    first, second, third, fourth = stream.getvalue().splitlines()
    assert first == (
        "step 10/50  epoch 1.2  loss 4.000 (ce 1.000  mask 0.050  dice 2.000)  8.0 images/s  "
        "0.50 GB  lr 1.00e-04  1 min 15 s left"
    )
    assert second == "step 20/50  loss 1.000  8.0 images/s  0.50 GB  lr 1.00e-04"
    assert third.endswith("lr 1.00e-04 (backbone 1.00e-05)")
    assert fourth.endswith("lr 1.00e-04")


class TestClassTable:
    def test_a_short_one_shows_all(self) -> None:
        text = printed(class_table(["sky", "car"], {"iou": [0.5, NAN]}, "by class"))
        assert "sky" in text
        assert "car" in text
        assert "do not occur" not in text

    def test_a_long_one_shows_what_occurs(self) -> None:
        names = [f"class{index:03}" for index in range(150)]
        columns = {"iou": [NAN] * 149 + [0.25], "pq": [0.5] + [NAN] * 149}
        text = printed(class_table(names, columns, "by class"))
        assert "class000" in text
        assert "class149" in text
        assert "class001" not in text
        said = " ".join(text.split())
        assert "148 classes that do not occur: shown with eval.all_classes=true" in said
        everything = printed(class_table(names, columns, "by class", everything=True))
        assert all(name in everything for name in names)


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_counted_may_have_any_name(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskformer.output.console.LINE_SECONDS", 0.0)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, markup=False, width=120)
    with Progress(console=console).counting("tiles of a[b][/b]\nerror: c.jpg", 3) as counter:
        counter.advance(1)
    assert r"tiles of a[b][/b]\x0aerror: c.jpg" in stream.getvalue()


def test_where_the_results_are(tmp_path: Path) -> None:
    """The folder of the pictures is named if some were drawn: not with `eval.pictures=0`."""
    folder = tmp_path / "predictions"
    metrics = f"The metrics are in {tmp_path / 'metrics.json'}"
    assert written(tmp_path) == f"{metrics}."
    folder.mkdir()
    assert written(tmp_path) == f"{metrics}."
    (folder / "a.png").touch()
    assert written(tmp_path) == f"{metrics}, the pictures in {folder}."
