"""The command line: `maskformer train | evaluate | predict | info | convert`."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import mfkernels
from maskformer.base import Format
from maskformer.checkpoint import (
    CheckpointError,
    checkpoint_to_resume,
    known_classes,
    load_info,
    load_prediction_recipe,
    load_recipe,
    resolve_checkpoint,
)
from maskformer.config import (
    Config,
    ConfigError,
    config_names,
    load_config,
    merge_model_config,
)
from maskformer.convert import convert
from maskformer.data import DatasetError, Sample, build_dataset, check_dataset
from maskformer.data.names import class_change
from maskformer.evaluation import (
    Evaluation,
    Prediction,
    eval_loader,
    evaluate,
    metrics_to_json,
    write_pictures,
)
from maskformer.info import model_info
from maskformer.model import MaskFormer, SegmentationModel
from maskformer.output import check_output_folder
from maskformer.predict import Mode, find_images, predict_images
from maskformer.processes import one_voice
from maskformer.progress import Progress, class_table, info_table, metrics_table
from maskformer.results import ResultWriter
from maskformer.trainer import Trainer, TrainingDivergedError, TrainingStoppedError
from maskformer.tta import Views
from maskformer.weights import HubError
from mfkernels.backend import Request as Backend

app = typer.Typer(
    help="MaskFormer: train, evaluate and use mask-classification models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigOption = Annotated[
    str | None,
    typer.Option("--config", "-c", help="A recipe's name (see `maskformer info`) or a YAML file."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the recipe's."),
]
BackendOption = Annotated[Backend, typer.Option(help="Who serves the mfkernels operations.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 …; the GPU if there is one.")
]
TtaOption = Annotated[
    bool,
    typer.Option("--tta", help="Average class scores over sizes and mirror images (eval.tta)."),
]
CheckpointOption = Annotated[
    Path,
    typer.Option(
        "--checkpoint", help="A run folder (its best checkpoint), a checkpoint or a model."
    ),
]


INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C where no training runs."""


@app.callback()
def options(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the program an error arose.")
    ] = False,
) -> None:
    """Options of every command; `main` reads them."""


@app.command()
@one_voice()
def train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    output: Annotated[
        Path | None, typer.Option(help="The run folder; runs/<config> unless given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --output.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="Start from the weights of this checkpoint.")
    ] = None,
    backend: BackendOption = "auto",
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Train on the CPU even if there is a GPU.")
    ] = False,
) -> None:
    """Train a recipe; several processes through `torchrun -m maskformer train …`.

    SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGUSR1 (Slurm: --signal=USR1@90) finish the step, save and
    stop with exit code 130, 143, 129 and 138; a second SIGINT or SIGTERM stops at once. SIGUSR2
    finishes the step, saves and goes on.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume continues a run and --overwrite removes it: choose one")
    if resume and output is None and config is None:
        raise typer.BadParameter("--resume needs the run: --output RUN_FOLDER")
    if config is None and not resume:
        raise typer.BadParameter(f"--config is needed; recipes: {', '.join(config_names())}")
    run = output or Path("runs") / Path(str(config)).with_suffix("").as_posix().replace("/", "_")
    if resume and config is None:
        recipe = load_recipe(checkpoint_to_resume(run), overrides or [])
    else:
        recipe = load_config(str(config), overrides or [])
    trainer = Trainer(
        recipe,
        run,
        resume=resume,
        overwrite=overwrite,
        weights=weights,
        backend=backend,
        cpu=cpu,
    )
    metrics = trainer.fit()
    trainer.progress.print(metrics_table(metrics, f"{run} after {trainer.step} steps"))
    trainer.progress.print(f"figures: {run / 'metrics.json'}   pictures: {run / 'predictions'}")


@app.command("evaluate")
def evaluate_command(
    checkpoint: CheckpointOption,
    overrides: Overrides = None,
    config: ConfigOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write metrics.json, pictures and, with eval.panoptic, COCO panoptic results "
            "(panoptic/, panoptic.json) into this folder."
        ),
    ] = None,
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="Also write the label maps into OUTPUT/classes.")
    ] = False,
    tta: TtaOption = False,
    backend: BackendOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Score a checkpoint on the validation images of its recipe (or of --config)."""
    if output is not None:
        check_output_folder(output)
    elif save_maps:
        raise typer.BadParameter("--save-maps needs a folder: --output FOLDER")
    for override in overrides or []:
        if override.startswith("model."):
            raise ConfigError(f"the checkpoint decides the model: '{override}' cannot replace it")
    folder = resolve_checkpoint(checkpoint)
    recipe = (
        load_config(config, overrides or []) if config else load_recipe(folder, overrides or [])
    )
    target = _device(device)
    model = MaskFormer.from_pretrained(folder).to(target)
    dataset = build_dataset(recipe.data, "val")
    _check_classes(model, recipe, len(dataset.info.classes))
    recipe = recipe.model_copy(update={"model": model.config})  # the one that will run
    progress = Progress()
    if change := class_change(known_classes(folder), dataset.info.classes):
        if change.reordered:
            raise ConfigError(
                f"the classes of {checkpoint} are those of the data in another order: "
                f"{change.text}; bring data.classes into the order of the checkpoint"
            )
        progress.warn(f"the classes of {checkpoint} have other names: {change.text}")
    for warning in check_dataset(dataset):
        progress.warn(warning)
    with ExitStack() as stack:
        stack.enter_context(mfkernels.use_backend(backend))
        each = None
        if output is not None:
            results = stack.enter_context(ResultWriter(output, dataset.info))
            each = partial(_write_results, results, save_maps)
        evaluation = evaluate(
            model,
            eval_loader(dataset, recipe, warn=progress.warn),
            dataset.info,
            recipe.eval,
            target,
            progress,
            tta=Views.from_config(recipe) if tta else None,
            each=each,
        )
    progress.print(class_table(dataset.info.classes, evaluation.per_class, "by class"))
    scored = "" if folder == checkpoint.resolve() else f" ({folder.name})"
    progress.print(metrics_table(evaluation.metrics, f"{checkpoint}{scored}"))
    if output is not None:
        _write_evaluation(evaluation, output)
        progress.print(f"figures: {output / 'metrics.json'}   pictures: {output / 'predictions'}")


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Image files, folders or glob patterns.")],
    checkpoint: CheckpointOption,
    out: Annotated[Path, typer.Option(help="Where the pictures and results go.")],
    mode: Annotated[
        Mode | None, typer.Option(help="What to predict; the recipe decides unless given.")
    ] = None,
    tta: TtaOption = False,
    backend: BackendOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Segment images: an overlay with a legend for each, and label maps, COCO panoptic files or
    COCO instances, as --mode says.
    """
    folder = resolve_checkpoint(checkpoint)
    files = find_images(images, out)
    model = MaskFormer.from_pretrained(folder).to(_device(device))
    recipe = load_prediction_recipe(folder, model)
    progress = Progress()
    with mfkernels.use_backend(backend):
        failures = predict_images(
            model,
            files,
            recipe,
            load_info(folder, model),
            out,
            mode=mode or ("panoptic" if recipe.eval.panoptic and not tta else "semantic"),
            tta=tta,
            progress=progress,
        )
    if failures == len(files):
        raise DatasetError(f"none of {len(files)} images could be read")
    progress.print(f"{len(files) - failures} images: {out}")
    if failures:
        raise typer.Exit(1)


@app.command()
def info(
    config: Annotated[
        str | None, typer.Argument(help="A recipe's name or file; all names unless given.")
    ] = None,
    overrides: Overrides = None,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the input for the FLOPs.")] = "512x512",
) -> None:
    """Parameters by part, and FLOPs at a size; without a recipe, the list of recipes."""
    progress = Progress()
    if config is None:
        for name in config_names():
            progress.print(name)
        return
    height, cross, width = size.partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise typer.BadParameter(f"--size reads HEIGHTxWIDTH, such as 512x512, got '{size}'")
    recipe = load_config(config, overrides or [])
    model = recipe.model
    if model.num_classes is None:
        classes = len(build_dataset(recipe.data, "train").info.classes)
        model = merge_model_config(model, {"num_classes": classes})
    progress.print(info_table(model_info(model, (int(height), int(width))), config))


@app.command("convert")
def convert_command(
    source: Annotated[
        str, typer.Argument(help="A folder, an official .pkl or .pth file, or a hub id.")
    ],
    target: Annotated[Path, typer.Argument(help="A folder; for official also a .pkl file.")],
    to: Annotated[Format, typer.Option(help="The format to write.")],
) -> None:
    """Write a checkpoint in another format: transformers', the authors' or our own."""
    check_output_folder(target if target.suffix != ".pkl" else target.parent)
    model = convert(source, target, to)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    Progress().print(f"{parameters:,} parameters: {target}")


def main() -> None:
    """Runs the command line; expected failures end in one clear line and exit code 1."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print("interrupted; nothing was left to save")
        raise
    except TrainingStoppedError as stop:
        errors.print(str(stop))
        sys.exit(stop.exit_code)
    except (ValueError, OSError, CheckpointError, HubError, TrainingDivergedError) as error:
        if "--traceback" in sys.argv:
            raise
        errors.print(f"error: {error}", style="red")
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if "--traceback" in sys.argv or not _out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        errors.print(
            f"error: out of memory; lower train.batch_size (or raise train.accumulate), "
            f"eval.batch_size, the crop or the test size: {reason}",
            style="red",
        )
        sys.exit(1)


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    # On a CPU, PyTorch raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error)
    )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"--device {name} cannot be used here: {reason}") from error
    return device


def _check_classes(model: SegmentationModel, recipe: Config, count: int) -> None:
    if model.config.num_classes != count:
        raise ConfigError(
            f"the checkpoint knows {model.config.num_classes} classes, "
            f"the data set {recipe.data.format} has {count}"
        )


def _write_results(
    results: ResultWriter, with_maps: bool, sample: Sample, prediction: Prediction
) -> None:
    if not with_maps:
        prediction = replace(prediction, classes=None)
    results.add(sample.name, sample.image_id, prediction)


def _write_evaluation(evaluation: Evaluation, output: Path) -> None:
    write_pictures(evaluation, output / "predictions")
    text = metrics_to_json({**evaluation.metrics, "per_class": evaluation.per_class})
    (output / "metrics.json").write_text(text, encoding="utf-8")
