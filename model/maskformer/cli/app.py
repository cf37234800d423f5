"""The commands of `maskformer` and their options.

Nothing here imports PyTorch, so that help, usage errors and shell completion are fast. The commands
are implemented in `maskformer.commands`, which is imported when they run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from maskformer.cli.arguments import (
    check_evaluated,
    check_model_stays,
    config_needed,
    flat_name,
    is_override,
    load_recipe,
    read_size,
)
from maskformer.cli.options import (
    BackendOption,
    CheckpointOption,
    Command,
    ConfigOption,
    DeviceOption,
    Overrides,
    TtaOption,
    complete_recipe,
)
from maskformer.config.choices import ExportedOutputs, Format, Mode, PreparedSet
from maskformer.config.recipes import config_names
from maskformer.output.output_folder import check_output_folder
from maskformer.system.processes import report_first_failure

app = typer.Typer(
    help="MaskFormer: train, evaluate and use mask-classification models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    help="Check a data set before training, or convert it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        from maskformer.system.version import installed

        python = ".".join(map(str, sys.version_info[:3]))
        torch, timm = installed("torch"), installed("timm")
        typer.echo(f"maskformer {installed()} (torch {torch}, timm {timm}, Python {python})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of maskformer, torch, timm and Python.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
    show_traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the program an error occurred.")
    ] = False,
) -> None:
    """Options of every command; `main` reads them."""


@app.command(cls=Command)
@report_first_failure("continue with --resume")
def train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    output: Annotated[
        Path | None, typer.Option(help="The run folder; default: runs/<config>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    auto_resume: Annotated[
        bool,
        typer.Option(
            "--auto-resume",
            help="Continue the run in --output if it has a checkpoint, else start it; for commands "
            "that may be restarted (torchrun --max-restarts, schedulers that requeue).",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --output.")
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Start from the weights of this checkpoint: a run, a folder, a file or a hub id. "
            "A recipe without a model section takes its architecture; without --config, the run's "
            "whole recipe is used. The weights are not read if --auto-resume continues a run."
        ),
    ] = None,
    backend: BackendOption = "auto",
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Train on the CPU even if there is a GPU.")
    ] = False,
) -> None:
    """Train a model from a recipe.

    To train with several processes, use `torchrun -m maskformer train …`.

    On SIGINT (Ctrl-C), SIGTERM, SIGHUP or SIGUSR1 (Slurm: --signal=USR1@90), training finishes the
    step, saves and stops with exit code 130, 143, 129 or 138, respectively; a second SIGINT or
    SIGTERM stops at once. On SIGUSR2, it finishes the step, saves and continues.
    """
    if (resume or auto_resume) and overwrite:
        raise typer.BadParameter("--resume continues a run and --overwrite removes it: choose one")
    if resume and auto_resume:
        raise typer.BadParameter("--resume needs a run and --auto-resume does not: choose one")
    if resume and weights is not None:
        raise typer.BadParameter(
            "--resume continues with the weights of the run and --weights starts from others: "
            "choose one"
        )
    if resume and output is None and config is None:
        raise typer.BadParameter("--resume needs the run folder: --output RUN_FOLDER")
    if config is None and not resume and weights is None:
        raise config_needed(overrides)
    if config is None and output is None:
        raise typer.BadParameter("--weights without --config needs the run folder: --output FOLDER")
    recipe = load_recipe(config, overrides)
    folder = output or Path("runs") / flat_name(str(config))
    if auto_resume:
        from maskformer.training.checkpoints.resuming import find_run

        resume, overwrite = find_run(folder)
    from maskformer.commands.train import run

    run(
        recipe,
        overrides or [],
        folder,
        config=config,
        resume=resume,
        overwrite=overwrite,
        weights=weights,
        backend=backend,
        cpu=cpu,
    )


@app.command(cls=Command)
@report_first_failure("start it again")
def evaluate(
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
    """Evaluate a checkpoint on validation images.

    The images are those of the checkpoint's recipe, or of --config. To share them among several
    processes, use `torchrun -m maskformer evaluate …`.
    """
    if output is not None:
        check_output_folder(output)
    elif save_maps:
        raise typer.BadParameter("--save-maps needs a folder: --output FOLDER")
    check_model_stays(overrides or [])
    check_evaluated(overrides or [])
    recipe = load_recipe(config, overrides)
    from maskformer.commands.evaluate import run

    run(
        checkpoint,
        recipe,
        overrides or [],
        output,
        save_maps=save_maps,
        tta=tta,
        backend=backend,
        device=device,
    )


@app.command(cls=Command)
@report_first_failure("continue with --skip-existing")
def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|KEY=VALUE",
            help="Image files, folders or glob patterns, and values that override the recipe's, "
            "such as predict.tile=512.",
        ),
    ],
    checkpoint: CheckpointOption,
    output: Annotated[
        Path, typer.Option("--output", "--out", help="Where the pictures and results go.")
    ],
    mode: Annotated[
        Mode | None, typer.Option(help="What to predict; default: what the recipe says.")
    ] = None,
    tta: TtaOption = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images that run together (eval.batch_size).")
    ] = None,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing", help="Continue where an earlier call with the same settings ended."
        ),
    ] = False,
    backend: BackendOption = "auto",
    device: DeviceOption = None,
) -> None:
    """Segment images.

    Writes an overlay with a legend for each image and, depending on --mode, label maps, COCO
    panoptic files or COCO instances. files.json says which result belongs to which image.

    To share the images among several processes, use `torchrun -m maskformer predict …`. On SIGINT
    (Ctrl-C), SIGTERM, SIGHUP or SIGUSR1, predict lists the finished images and stops;
    --skip-existing then continues.
    """
    overrides = [text for text in images if is_override(text)]
    images = [text for text in images if text not in overrides]
    if not images:
        raise typer.BadParameter("no images are given, only values of the recipe")
    check_output_folder(output)
    check_model_stays(overrides)
    if batch_size is not None:
        overrides.append(f"eval.batch_size={batch_size}")
    from maskformer.commands.predict import run

    run(
        images,
        checkpoint,
        output,
        overrides=overrides,
        mode=mode,
        tta=tta,
        skip_existing=skip_existing,
        backend=backend,
        device=device,
    )


@app.command(cls=Command)
def info(
    config: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name or file; default: list all names.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    overrides: Overrides = None,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the input for the FLOPs.")] = "512x512",
    keys: Annotated[
        bool, typer.Option("--keys", help="List the recipe's keys: names, values, types, meanings.")
    ] = False,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print the recipe as YAML, with its base and defaults.")
    ] = False,
) -> None:
    """List the recipes, or show the parameters and FLOPs of one."""
    if keys and as_yaml:
        raise typer.BadParameter("--keys and --yaml print the recipe in two forms: choose one")
    if config is None and (keys or as_yaml):
        raise typer.BadParameter(f"which recipe? One of {', '.join(config_names())}, or a file")
    recipe = load_recipe(config, overrides)
    if config is None or recipe is None:
        typer.echo("\n".join(config_names()))
        return
    height_and_width = read_size(size)
    if keys or as_yaml:
        from maskformer.commands.recipe_text import keys_text, yaml_text

        typer.echo(keys_text(recipe) if keys else yaml_text(recipe), nl=False)
        return
    from maskformer.commands.info import run

    run(recipe, height_and_width, title=config)


@app.command(cls=Command)
def init(
    folder: Annotated[Path, typer.Argument(help="A folder with images and their labels.")],
    output: Annotated[
        Path | None,
        typer.Option(help="The recipe to write; default: FOLDER's name.yaml; - prints it."),
    ] = None,
) -> None:
    """Write a recipe for a folder of images and labels.

    Inspects the files to find formats, classes, values, splits and sizes.
    """
    from maskformer.commands.init import run

    run(folder, output)


@data_app.command(cls=Command)
def check(
    overrides: Overrides = None,
    config: ConfigOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="An empty folder for the pictures; default: checks/<config>, or checks/<config>_2 "
            "if that exists."
        ),
    ] = None,
) -> None:
    """Read a whole data set, and report what training would reject.

    Lists sizes, skipped files, the classes of each split and what training would warn about, and
    draws some samples with their labels. The exit code is 1 if training would reject the data.
    """
    if config is None:
        raise config_needed(overrides)
    recipe = load_recipe(config, overrides)
    assert recipe is not None
    from maskformer.commands.data_check import run

    name = Path(config).stem if Path(config).is_file() else flat_name(config)
    run(recipe, output, Path("checks") / name)


@data_app.command(cls=Command)
def prepare(
    name: Annotated[PreparedSet, typer.Argument(help="Which data set it is.")],
    root: Annotated[
        Path,
        typer.Argument(help="Its folder: ADE20K_2021_17_01 or ADEChallengeData2016, as unpacked."),
    ],
) -> None:
    """Convert an official archive once, for the recipes of that name.

    Writes the results beside the files of the archive, which are not changed. Existing files are
    not written again, so after an interruption the same command continues.
    """
    from maskformer.commands.data_prepare import run

    run(name, root)


@app.command(cls=Command)
def convert(
    source: Annotated[str, typer.Argument(help="A run, a folder, a weight file, or a hub id.")],
    target: Annotated[Path, typer.Argument(help="A folder; for official also a .pkl file.")],
    to: Annotated[Format, typer.Option(help="The format to write.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model at TARGET.")
    ] = False,
) -> None:
    """Write a checkpoint in another format.

    hf is the format of transformers, official is the authors', and native is our own.
    """
    check_output_folder(target if target.suffix != ".pkl" else target.parent)
    from maskformer.commands.convert import run

    run(source, target, to, overwrite=overwrite)


@app.command(cls=Command)
def export(
    source: Annotated[str, typer.Argument(help="A run, a folder, a weight file, or a hub id.")],
    target: Annotated[Path, typer.Argument(help="The .onnx file to write.")],
    outputs: Annotated[
        ExportedOutputs,
        typer.Option(help="The class of each pixel, or the logits of classes and masks."),
    ] = "classes",
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH of all images; default: any size (a Swin needs it)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a model as an ONNX file for ONNX Runtime, TensorRT, OpenVINO and others."""
    check_output_folder(target.parent)
    height_and_width = None if size is None else read_size(size)
    from maskformer.commands.export import run

    run(source, target, outputs, height_and_width, overwrite=overwrite)
