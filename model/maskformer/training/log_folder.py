"""The folder of a run's curves, and which run it belongs to."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from maskformer.config.schema import TrainConfig
from maskformer.system.writing import write_json
from maskformer.training.run_folder import EVENTS, TENSORBOARD, is_run, read_marker

OWNER = ".maskformer-log"
"""JSON file that names the run that writes into a subfolder of `train.log_folder`."""


def find_log_folder(output: Path, train: TrainConfig) -> Path:
    """Return where TensorBoard and other trackers write the files of the run in `output`."""
    if train.log_folder is None:
        return output / TENSORBOARD
    return train.log_folder / output.resolve().name


def check_log_folder(output: Path, train: TrainConfig) -> None:
    """Check that the log folder does not hold the curves of another run, which those of this run
    would hide in TensorBoard.

    Raises:
        FileExistsError: it does.
    """
    folder = find_log_folder(output, train)
    shared = train.log_folder is not None and "tensorboard" in train.trackers
    if not shared or not any(folder.glob(EVENTS)):
        return
    owner = read_marker(folder / OWNER).get("run")  # earlier versions wrote no owner
    moved = isinstance(owner, str) and not is_run(Path(owner))
    if is_run(output) and (owner in (None, str(output.resolve())) or moved):
        return
    whose = f"the run {owner}" if isinstance(owner, str) else "another run"
    raise FileExistsError(
        f"train.log_folder: {folder} holds the curves of {whose}, which those of {output} would "
        "hide in TensorBoard: choose another train.log_folder or another name for the run folder, "
        "or remove them"
    )


def mark_log_folder(output: Path, train: TrainConfig) -> None:
    """Record that the log folder belongs to the run in `output`."""
    if train.log_folder is not None:
        with suppress(OSError):  # TensorBoard will report the problem
            owner = {"run": str(output.resolve())}
            write_json(find_log_folder(output, train) / OWNER, owner)
