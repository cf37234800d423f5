"""Prediction of many images: reading, network and writing run in parallel."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState

from maskformer.config.choices import Mode
from maskformer.data.sample import Sample
from maskformer.errors import DatasetError, OutputError
from maskformer.inference.prediction import Prediction
from maskformer.output.console import Progress
from maskformer.output.output_folder import check_output_folder
from maskformer.output.picture_writer import PictureWriter
from maskformer.output.protected_inputs import check_output_beside_data
from maskformer.output.result_writer import SUBFOLDERS, ResultWriter, remove_leftovers
from maskformer.predict.journal import Entry, Journal, Task, describe_image, describe_settings
from maskformer.predictor import Predictor, Prepared
from maskformer.system.folder_lock import lock_output
from maskformer.system.paths import (
    OutputNames,
    find_input_in,
    folders_and_links_of,
    image_ids,
)
from maskformer.system.process_group import gather_in_order
from maskformer.system.processes import local_world_size
from maskformer.system.text import escape
from maskformer.system.threads import MAX_THREADS, ahead, available_cpus, threads

AHEAD = 4
"""Number of images per thread that are read ahead of the network, or that wait to be written."""
WINDOW = 4
"""Size in batches of the windows of consecutive images, within which images of the same size are
batched. So the composition of batches depends neither on the number of processes nor on the images
that an earlier call finished.
"""


class _Failure(NamedTuple):
    """An image that could not be predicted."""

    task: Task
    reason: str


def predict_images(
    predictor: Predictor,
    files: Sequence[Path],
    out: Path,
    *,
    progress: Progress,
    skip_existing: bool = False,
    processes: PartialState | None = None,
) -> int:
    """Predict images and write the results.

    This writes `NAME.png` (overlay and legend; `NAME.jpg` for large images) for each image, the
    files of `ResultWriter`, and `files.json`, which maps each NAME to its image.

    An image that cannot be read is reported and skipped. In the JSON files, the id of an image is
    its name, converted to a number if it is one and that is unique (as in COCO). `out` is created
    for the first result. All instances are written, but only those with a score of at least
    `eval.object_mask_threshold` are drawn.

    Args:
        predictor: predicts the images.
        files: the images.
        out: the output folder.
        progress: prints messages and shows the progress.
        skip_existing: skip the images that an earlier call with the same settings finished, which
            `.predictions*.jsonl` record. The result is the same as without an interruption.
        processes: the processes that share the images, all of which must call this. The first one
            writes the lists of results.

    Returns:
        The number of images that were skipped, in all processes.

    Raises:
        OSError: `out` cannot be written.
        FileExistsError: a file that was not written by this function has the name of a result.
        OutputError: `out` is or contains the folder of an image, or data of the recipe.
        RunInUseError: another process is using `out`.
        UsageError: the model or its classes do not support the mode, or `skip_existing` is set and
            the results in `out` were made with other settings.
    """
    check_output_folder(out)
    check_beside_images(out, files)
    check_output_beside_data(out, predictor.config.data)
    with lock_output(out, processes, progress.warn):
        return _predict_images(predictor, files, out, progress, skip_existing, processes)


def _predict_images(
    predictor: Predictor,
    files: Sequence[Path],
    out: Path,
    progress: Progress,
    skip_existing: bool,
    processes: PartialState | None,
) -> int:
    rank, count = (
        (0, 1) if processes is None else (processes.process_index, processes.num_processes)
    )
    tasks = _tasks(files)
    journal = Journal(out, describe_settings(predictor), rank)
    results = ResultWriter(out, predictor.info)
    pictures = PictureWriter(out, predictor.info, predictor.config)
    if not journal.exists():
        _check_free(out, tasks, pictures, predictor.mode)
    windows = _windows(tasks, predictor.config.eval.batch_size)
    done: dict[int, Entry] = {}
    if skip_existing:
        found = _finished_earlier(tasks, journal.read(), results)
        windows, done = _remaining(windows, found)
    elif journal.holds_others():
        progress.print(
            f"{escape(out)} holds results of another model, mode or recipe: files with the same "
            "names are replaced, others are kept"
        )
    if rank == 0:
        remove_leftovers(out)
    _replace(journal, tasks, done, processes)
    if done:
        progress.print(f"{len(done)} of {len(tasks)} images are already done")
    failures: list[_Failure] = []
    made: list[tuple[int, Entry]] = []
    mine = windows[rank::count]
    with results, pictures, closing(journal):
        try:
            write = partial(_write, results, pictures)
            for index, entry in _entries(predictor, mine, journal, write, progress, failures):
                journal.add(entry)
                made.append((index, entry))
            made, failures = gather_in_order(made), gather_in_order(failures)
        finally:
            done |= dict(made)
            if rank == 0:
                for index in sorted(done):
                    pictures.collect(done[index].picture)
                    task = tasks[index]
                    results.collect(task.name, task.image_id, done[index].result, task.file.name)
    _replace(journal, tasks, done, processes)
    for failure in failures:
        if not any(failure.task in window for window in mine):
            progress.warn(failure.reason)
    return len(failures)


def _tasks(files: Sequence[Path]) -> list[Task]:
    names = _output_names(files)
    rows = zip(range(len(files)), files, names, image_ids(names), strict=True)
    return [Task(*row) for row in rows]


def _output_names(files: Sequence[Path]) -> list[str]:
    """Return file stems that are valid and unique in one folder; equal stems are numbered."""
    names = OutputNames()
    return [names.take(file.stem) for file in files]


def _windows(tasks: Sequence[Task], batch_size: int) -> list[Sequence[Task]]:
    size = WINDOW * batch_size if batch_size > 1 else 1
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


def _remaining(
    windows: Sequence[Sequence[Task]], found: dict[int, Entry]
) -> tuple[list[Sequence[Task]], dict[int, Entry]]:
    """Return the windows with an unfinished image, which are predicted completely, and the entries
    of all other windows.
    """
    remaining = [window for window in windows if any(task.number not in found for task in window)]
    again = {task.number for window in remaining for task in window}
    return remaining, {number: entry for number, entry in found.items() if number not in again}


def _finished_earlier(
    tasks: Iterable[Task], entries: Iterable[Entry], results: ResultWriter
) -> dict[int, Entry]:
    """Return the entries of images that have not changed and whose result files still exist."""
    named = {entry.name: entry for entry in entries}
    found = {}
    for task in tasks:
        entry = named.get(task.name)
        if entry is None or not task.file.is_file():
            continue
        written = results.files(task.name, entry.result)
        written.append(results.folder / entry.picture["picture"])
        if entry.image == describe_image(task.file) and all(file.is_file() for file in written):
            found[task.number] = entry
    return found


def _replace(
    journal: Journal,
    tasks: Sequence[Task],
    entries: dict[int, Entry],
    processes: PartialState | None,
) -> None:
    """Merge the journals into one with these entries, in order, while no process is writing."""
    if processes is not None:
        processes.wait_for_everyone()
    if processes is None or processes.is_main_process:
        journal.replace(entries[task.number] for task in tasks if task.number in entries)
    if processes is not None:
        processes.wait_for_everyone()


def _entries(
    predictor: Predictor,
    windows: Sequence[Sequence[Task]],
    journal: Journal,
    write: Callable[[Task, Sample, Prediction], Entry],
    progress: Progress,
    failures: list[_Failure],
) -> Iterator[tuple[int, Entry]]:
    """Predict images and yield an entry for each, approximately in order. Images that fail are
    added to `failures`.
    """
    tasks = [task for window in windows for task in window]
    by_number = {task.number: task for task in tasks}
    window_of = {task.number: k for k, window in enumerate(windows) for task in window}

    def fail(task: Task, error: DatasetError) -> None:
        progress.warn(str(error))
        failures.append(_Failure(task, str(error)))
        counter.advance(1)

    count = _thread_count()
    with (
        progress.counting("predicting", len(tasks)) as counter,
        threads(count) as readers,
        threads(count) as writers,
    ):
        waiting: deque[tuple[int, Future[Entry]]] = deque()
        read = ahead(readers, partial(_read, predictor), tasks, AHEAD * count)
        for batch in _batches(predictor, _usable(read, fail), window_of):
            batch_tasks = [by_number[int(one.sample.image_id)] for one in batch]
            try:
                predictions = predictor.predict(batch)
            except DatasetError as error:
                fail(batch_tasks[0], error)
                continue
            for task, prepared, prediction in zip(batch_tasks, batch, predictions, strict=True):
                if task.name != task.file.stem:
                    progress.print(f"{escape(task.file)}: its results are named {task.name}")
                journal.start()
                written = writers.submit(write, task, prepared.sample, prediction)
                waiting.append((task.number, written))
            while len(waiting) > AHEAD * count:
                yield waiting[0][0], waiting.popleft()[1].result()
                counter.advance(1)
        while waiting:
            yield waiting[0][0], waiting.popleft()[1].result()
            counter.advance(1)


def _batches(
    predictor: Predictor, prepared: Iterable[Prepared], window_of: dict[int, int]
) -> Iterator[list[Prepared]]:
    for _, window in groupby(prepared, lambda one: window_of[int(one.sample.image_id)]):
        yield from predictor.batches(window)


def _thread_count() -> int:
    """Return the number of reader threads, and of writer threads. Together they use the CPUs of
    this process, up to a limit, because each thread holds some images in memory.
    """
    cpus = available_cpus() // local_world_size()
    return min(max(cpus // 2, 1), MAX_THREADS)


def _read(predictor: Predictor, task: Task) -> tuple[Task, Prepared | DatasetError]:
    try:
        image = predictor.processor.reader(task.file)
        return task, predictor.prepare(Sample.unlabelled(image, task.file.name, task.number))
    except DatasetError as error:
        return task, error


def _usable(
    read: Iterable[tuple[Task, Prepared | DatasetError]],
    fail: Callable[[Task, DatasetError], None],
) -> Iterator[Prepared]:
    for task, prepared in read:
        if isinstance(prepared, DatasetError):
            fail(task, prepared)
        else:
            yield prepared


def _write(
    results: ResultWriter,
    pictures: PictureWriter,
    task: Task,
    sample: Sample,
    prediction: Prediction,
) -> Entry:
    image = describe_image(task.file)
    return Entry(
        image=image,
        picture=pictures.write(task.name, task.file, sample.image, prediction),
        result=results.write(task.name, prediction),
    )


def _check_free(out: Path, tasks: Sequence[Task], pictures: PictureWriter, mode: Mode) -> None:
    """Check that no file in the output folder has the name of a result."""
    kind = {"semantic": "classes", "panoptic": "panoptic", "instance": "instances"}[mode]
    names = ["files.json", f"{kind}.json"]
    names += ["classes.json"] if mode == "instance" else []
    for task in tasks if out.is_dir() else ():
        names += pictures.possible_names(task.name)
        names += [f"{kind}/{task.name}.png"] if kind in SUBFOLDERS else []
    taken = next((out / name for name in names if os.path.lexists(out / name)), None)
    if taken is not None:
        raise FileExistsError(
            f"{escape(taken)} already exists, and its folder has no record that maskformer predict "
            "wrote it: choose another --output, or remove it"
        )


def check_beside_images(out: Path, files: Sequence[Path]) -> None:
    found = find_input_in(out, folders_and_links_of(files))
    if found is not None:
        file = next(file for file in files if found in (file, file.parent))
        raise OutputError(
            f"{escape(file)} is one of the images, and the output folder {escape(out)} contains "
            "it, so results could overwrite images: choose another --output"
        )
