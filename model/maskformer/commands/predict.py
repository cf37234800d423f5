"""`maskformer predict`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

import mfkernels
from maskformer.commands.device import choose_processes
from maskformer.config.choices import Backend, Mode
from maskformer.errors import DatasetError, StoppedError
from maskformer.output.console import Progress
from maskformer.output.protected_inputs import check_output_beside_model
from maskformer.predict.finding import find_images
from maskformer.predict.running import check_beside_images, predict_images
from maskformer.predictor import Predictor
from maskformer.system.allocator import keep_freed_memory
from maskformer.system.signals import Interrupted, Signals
from maskformer.system.text import counted, escape
from maskformer.training.checkpoints.contents import resolve_checkpoint


def run(
    images: list[str],
    checkpoint: Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    mode: Mode | None,
    tta: bool,
    skip_existing: bool = False,
    backend: Backend,
    device: str | None,
) -> None:
    """Predict images, sharing them with the other processes of a launcher, if there are any."""
    folder = resolve_checkpoint(checkpoint)
    target, processes = choose_processes(device)
    keep_freed_memory(target)
    progress = Progress(enabled=processes is None or processes.is_main_process)
    files = find_images(images, out, progress.print)
    check_beside_images(out, files)
    check_output_beside_model(out, folder)
    predictor = Predictor.from_pretrained(
        folder, *overrides, mode=mode, tta=tta, device=target, progress=progress
    )
    with mfkernels.use_backend(backend), _stopping(out):
        failures = predict_images(
            predictor,
            files,
            out,
            progress=progress,
            skip_existing=skip_existing,
            processes=processes,
        )
    if processes is not None:
        processes.destroy_process_group()
    if failures == len(files):
        raise DatasetError(f"none of {len(files)} images could be read")
    count = len(files) - failures
    how = "done" if skip_existing else "predicted"
    progress.print(
        f"{counted(count, 'image')} {how}; the results are in {out}, and files.json "
        "there maps each of them to its image."
    )
    if failures:
        progress.print(f"{counted(failures, 'image')} could not be read; the warnings name them.")
        raise typer.Exit(1)


@contextmanager
def _stopping(out: Path) -> Iterator[None]:
    """End the work at once on a stop signal; finished images have been listed by then.

    Raises:
        StoppedError: a stop signal came.
    """
    with Signals(verbose=False) as signals:
        try:
            with signals.interruptible():
                yield
        except Interrupted:
            finished = (
                f"files.json in {escape(out)} lists the images that are finished. Continue with "
                "the same command and --skip-existing"
                if (out / "files.json").is_file()
                else "no image was finished"
            )
            raise StoppedError(signals.stop, f"stopped; {finished}") from None
