"""`maskformer evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from accelerate import PartialState

import mfkernels
from maskformer.commands.device import choose_processes
from maskformer.config.choices import Backend
from maskformer.config.schema import Config, EvalConfig
from maskformer.data import Dataset, DatasetInfo, Sample, build_dataset, check_dataset
from maskformer.data.class_change import class_change
from maskformer.data.inspection.checks import check_objects
from maskformer.errors import ConfigError
from maskformer.evaluation.evaluate import (
    Evaluation,
    check_averaging,
    eval_loader,
    evaluate,
    write_pictures,
)
from maskformer.evaluation.figures import write_confusion, write_metrics
from maskformer.evaluation.measures import check_measures
from maskformer.inference.prediction import Prediction
from maskformer.inference.ready import ready_to_predict
from maskformer.inference.test_time_augmentation import AugmentedViews
from maskformer.modeling.base import SegmentationModel
from maskformer.output.console import Progress, class_table, metrics_table, written
from maskformer.output.output_folder import (
    CONFUSION,
    METRICS,
    PREDICTIONS,
    check_subfolders,
    existing_names,
)
from maskformer.output.protected_inputs import check_output_beside_data, check_output_beside_model
from maskformer.output.result_writer import ResultWriter, remove_leftovers
from maskformer.output.shared_results import SharedResults
from maskformer.system.allocator import keep_freed_memory
from maskformer.system.folder_lock import lock_output
from maskformer.system.listing import EVALUATION
from maskformer.system.text import escape
from maskformer.system.writing import write_json
from maskformer.training.checkpoints.contents import known_classes, load_recipe, resolve_checkpoint
from maskformer.weights.native import LIBRARY

MARKER = EVALUATION
"""JSON file that marks a folder with results of an evaluation, which another one may replace."""


def run(
    checkpoint: Path,
    recipe: Config | None,
    overrides: list[str],
    output: Path | None,
    *,
    save_maps: bool,
    tta: bool,
    backend: Backend,
    device: str | None,
) -> None:
    """Evaluate a checkpoint on the validation images of a recipe; by default, of its own recipe."""
    folder = resolve_checkpoint(checkpoint)
    recipe = recipe or load_recipe(folder, overrides)
    target, processes = choose_processes(device)
    keep_freed_memory(target)
    check_averaging(tta, recipe.eval)
    check_objects(recipe.data, recipe.eval)
    if output is not None:
        check_output_beside_model(output, folder)
        check_subfolders(output, [PREDICTIONS])
        _check_free(output, recipe.eval, save_maps)
    main = processes is None or processes.is_main_process
    progress = Progress(enabled=main)
    model = SegmentationModel.from_pretrained(folder, warn=progress.warn).to(target)
    dataset = build_dataset(recipe.data, "val")
    check_measures(recipe.eval, dataset)
    if output is not None:
        check_output_beside_data(output, recipe.data, dataset)
    _check_model(model, recipe, len(dataset.info.classes))
    # The model of the checkpoint is used, whatever the recipe says.
    recipe = recipe.model_copy(update={"model": model.config})
    _compare_classes(checkpoint, known_classes(folder), dataset, progress)
    for note in getattr(dataset, "notes", ()):
        progress.print(f"val data: {note}")
    for warning in check_dataset(dataset):
        progress.warn(warning)
    with ExitStack() as stack:
        stack.enter_context(mfkernels.use_backend(backend))
        if output is not None:
            stack.enter_context(lock_output(output, processes, progress.warn))
            if main:  # check again under the lock, as another call may have written there
                _check_free(output, recipe.eval, save_maps)
        with ExitStack() as writing:
            on_prediction = None
            if output is not None:
                results = writing.enter_context(
                    _results(output, dataset.info, processes, recipe.eval.batch_size)
                )
                on_prediction = partial(_write_results, results, save_maps)
            evaluation = evaluate(
                ready_to_predict(model, recipe.eval.precision),
                eval_loader(
                    dataset,
                    recipe,
                    rank=0 if processes is None else processes.process_index,
                    world_size=1 if processes is None else processes.num_processes,
                    warn=progress.warn,
                ),
                dataset.info,
                recipe.eval,
                target,
                progress,
                tta=AugmentedViews.from_config(recipe) if tta else None,
                on_prediction=on_prediction,
            )
        if processes is not None:
            processes.destroy_process_group()
        if not main:
            return
        classes, everything = dataset.info.classes, recipe.eval.all_classes
        progress.print(
            class_table(classes, evaluation.per_class, "by class", everything=everything)
        )
        scored = "" if folder == checkpoint.resolve() else f" ({folder.name})"
        progress.print(metrics_table(evaluation.metrics, f"{checkpoint}{scored}"))
        if output is not None:
            _write_evaluation(evaluation, classes, output)
            progress.print(written(output))


def _check_free(output: Path, evaluation: EvalConfig, save_maps: bool) -> None:
    """Check that an output folder has no files in the way but those of an earlier evaluation."""
    if (output / MARKER).is_file():
        return
    files = [METRICS, f"{CONFUSION}.json", f"{CONFUSION}.png"]
    kinds = {"classes": save_maps, "panoptic": evaluation.panoptic}
    folders = [kind for kind, written in kinds.items() if written]
    lists = dict.fromkeys([*folders, *["classes", "instances"] * evaluation.instances])
    files += [f"{kind}.json" for kind in lists]
    folders += [PREDICTIONS] if evaluation.pictures else []
    foreign = existing_names(output, files, folders)
    if foreign:
        raise FileExistsError(
            f"{escape(output)} holds {', '.join(foreign)}, but no {MARKER} that marks them as "
            "results of an earlier evaluation: choose another --output, or remove them"
        )


def _compare_classes(
    checkpoint: Path, known: Sequence[str] | None, dataset: Dataset, progress: Progress
) -> None:
    change = class_change(known, dataset.info.classes)
    if change and change.reordered:
        raise ConfigError(
            f"the classes of {checkpoint} are those of the data in another order: "
            f"{change.text}; change data.classes to the order of the checkpoint"
        )
    if change:
        progress.warn(f"the classes of {checkpoint} have other names: {change.text}")


def _check_model(model: SegmentationModel, recipe: Config, count: int) -> None:
    if model.config.num_channels != recipe.data.num_channels:
        raise ConfigError(
            f"the checkpoint takes images of {model.config.num_channels} channels, but "
            f"data.channels gives {recipe.data.num_channels}"
        )
    if model.config.num_classes != count:
        raise ConfigError(
            f"the checkpoint has {model.config.num_classes} classes, but the data set "
            f"(data.format: {recipe.data.format}) has {count}"
        )


@contextmanager
def _results(
    output: Path, info: DatasetInfo, processes: PartialState | None, batch_size: int
) -> Iterator[ResultWriter | SharedResults]:
    with ResultWriter(output, info) as writer:
        if processes is None or processes.is_main_process:
            remove_leftovers(output)
            write_json(output / MARKER, {"library": LIBRARY})
        if processes is None:
            yield writer
        else:
            processes.wait_for_everyone()
            shared = SharedResults(writer, processes, batch_size)
            yield shared
            shared.finish()


def _write_results(
    results: ResultWriter | SharedResults, with_maps: bool, sample: Sample, prediction: Prediction
) -> None:
    if not with_maps:
        prediction = replace(prediction, classes=None)
    results.add(sample.name, sample.image_id, prediction, sample.file_name)


def _write_evaluation(evaluation: Evaluation, classes: Sequence[str], output: Path) -> None:
    write_pictures(evaluation, output / PREDICTIONS)
    write_metrics(output, evaluation.metrics, evaluation, classes)
    write_confusion(output, evaluation, classes)
