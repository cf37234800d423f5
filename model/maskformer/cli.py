"""The command line: `maskformer init | data | train | evaluate | predict | info | …`.

Nothing here imports PyTorch, so that help, usage errors and shell completion are fast. The commands
are implemented in `maskformer.commands`, which is imported when they run.
"""

from __future__ import annotations

import glob
import re
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand

from maskformer.config.choices import Backend, ExportedOutputs, Format, Mode, PreparedSet
from maskformer.config.recipes import config_names
from maskformer.errors import MaskFormerError, StoppedError, UsageError
from maskformer.output.output_folder import check_output_folder
from maskformer.system.openmp import limit_spinning
from maskformer.system.processes import report_first_failure
from maskformer.system.text import escape, make_streams_safe

if TYPE_CHECKING:
    from maskformer.config.schema import Config


class Command(TyperCommand):
    """A command that rejects empty arguments, which unset variables of the shell cause."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(args=[*args])
        for parameter in self.get_params(ctx):
            value = given.get(str(parameter.name))
            if "" in (value if isinstance(value, list | tuple) else [value]):
                raise typer.BadParameter("it is empty", ctx, cast("Any", parameter))
        return super().parse_args(ctx, args)


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


def complete_recipe(incomplete: str) -> list[str]:
    """Complete names of recipes. If there are none, the shell completes file names."""
    return [name for name in config_names() if name.startswith(incomplete)]


ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        help="A recipe's name (see `maskformer info`) or a YAML file.",
        autocompletion=complete_recipe,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values that override the recipe's."),
]
BackendOption = Annotated[
    Backend,
    typer.Option(
        help="What computes the operations of mfkernels: kernels, or plain PyTorch if there are "
        "none or they fail (auto); kernels or an error (native); plain PyTorch (reference); "
        "kernels compared with plain PyTorch (verify)."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: the GPU, if there is one.")
]
TtaOption = Annotated[
    bool,
    typer.Option("--tta", help="Average class scores over sizes and mirror images (eval.tta)."),
]
CheckpointOption = Annotated[
    Path,
    typer.Option(
        "--checkpoint",
        help="A run folder (its best checkpoint), a checkpoint, a model, or a hub id.",
    ),
]


NOT_EVALUATED = ("model.", "criterion.", "train.", "predict.", "data.augmentation.")
"""Keys of a recipe without effect on `evaluate`, except for those in `EVALUATED`."""
EVALUATED = ("train.workers", "train.best_metric")
"""Keys of these sections that are used: `train.best_metric` is checked to be measured."""
INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C outside of training."""
INTERNAL_ERROR = 70
"""Exit code after a bug: `EX_SOFTWARE` in sysexits.h."""


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
        raise _config_needed(overrides)
    if config is None and output is None:
        raise typer.BadParameter("--weights without --config needs the run folder: --output FOLDER")
    recipe = _load_recipe(config, overrides)
    folder = output or Path("runs") / _flat_name(str(config))
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
    _check_model_stays(overrides or [])
    _check_evaluated(overrides or [])
    recipe = _load_recipe(config, overrides)
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
    overrides = [text for text in images if _is_override(text)]
    images = [text for text in images if text not in overrides]
    if not images:
        raise typer.BadParameter("no images are given, only values of the recipe")
    check_output_folder(output)
    _check_model_stays(overrides)
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
    recipe = _load_recipe(config, overrides)
    if config is None or recipe is None:
        typer.echo("\n".join(config_names()))
        return
    height_and_width = _read_size(size)
    if keys or as_yaml:
        from maskformer.commands.recipe_text import keys_text, yaml_text

        typer.echo(keys_text(recipe) if keys else yaml_text(recipe), nl=False)
        return
    from maskformer.commands.info import run

    run(recipe, height_and_width, title=config)


def _read_size(text: str) -> tuple[int, int]:
    sides = [int(side) for side in text.split("x") if re.fullmatch("[0-9]{2,5}", side)]
    if len(sides) != 2 or text.count("x") != 1 or min(sides) < 32:
        raise typer.BadParameter(
            f"--size must be HEIGHTxWIDTH, such as 512x512, both from 32 to 99999, got '{text}'"
        )
    return sides[0], sides[1]


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
        raise _config_needed(overrides)
    recipe = _load_recipe(config, overrides)
    assert recipe is not None
    from maskformer.commands.data_check import run

    name = Path(config).stem if Path(config).is_file() else _flat_name(config)
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
    height_and_width = None if size is None else _read_size(size)
    from maskformer.commands.export import run

    run(source, target, outputs, height_and_width, overwrite=overwrite)


def main() -> None:
    """Run the command line.

    Errors that the user can fix are printed in one line, with exit code 1. Bugs are printed with a
    traceback, with exit code 70.
    """
    make_streams_safe()
    limit_spinning()
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED and not isinstance(end.__context__, StoppedError):
            _print_error("interrupted; nothing was left to save")
        option = getattr(end.__context__, "option_name", None)
        if option is not None:
            _suggest_override(option)
        raise
    except StoppedError as stop:
        _print_error(str(stop))
        sys.exit(stop.exit_code)
    except Exception as error:
        if "--traceback" in sys.argv:
            raise
        reason = _reason(error)
        if reason is not None:
            _print_error(f"error: {reason}", style="red")
            sys.exit(1)
        _print_error(traceback.format_exc())
        _print_error(
            "internal error: this is a bug in maskformer or in a library that it uses, not a "
            "mistake in the command; please report it with the lines above",
            style="red",
        )
        sys.exit(INTERNAL_ERROR)


def _reason(error: Exception) -> str | None:
    """Return the message of an error that the user can fix, or None for a bug."""
    if isinstance(error, MaskFormerError | OSError) or _is_backend_error(error):
        return str(error)
    if isinstance(error, MemoryError | RuntimeError) and _out_of_memory(error):
        first_line = str(error).partition("\n")[0]
        return (
            "out of memory; lower train.batch_size (or raise train.accumulate), eval.batch_size, "
            f"the crop or the test size: {first_line}"
        )
    return None


def _config_needed(overrides: list[str] | None) -> typer.BadParameter:
    """Return the error for a missing --config. If a recipe or a folder was given without the
    option, it shows the correct command.
    """
    for text in overrides or []:
        if text in config_names() or Path(text).is_file():
            return typer.BadParameter(f"--config is needed: --config {shlex.quote(text)}")
        if Path(text).is_dir():
            return typer.BadParameter(
                f"--config is needed, and {text} is a folder: maskformer init {shlex.quote(text)} "
                "writes a recipe for it"
            )
    return typer.BadParameter(f"--config is needed; recipes: {', '.join(config_names())}")


def _flat_name(config: str) -> str:
    """Convert the value of --config to a folder name, such as `ade20k_r50`."""
    return Path(config).with_suffix("").as_posix().replace("/", "_")


def _load_recipe(config: str | None, overrides: list[str] | None) -> Config | None:
    """Load the recipe of --config. This is done before a command is imported, so that errors in it
    are reported at once.
    """
    if config is None:
        return None
    from maskformer.config.load import load_config

    return load_config(config, overrides or [])


def _suggest_override(option: str) -> None:
    """If an unknown option is a key of the recipe, or another spelling of an option, print the
    correct form.
    """
    from maskformer.config.options import overrides_for
    from maskformer.config.synonyms import meant_option

    rest = iter(sys.argv)
    given = next((text for text in rest if text.partition("=")[0] == option), "")
    value = given.partition("=")[2] or next(rest, "")
    overrides = overrides_for(option, "" if value.startswith("-") else value)
    if overrides:
        _print_error(
            f"{option} is a value of the recipe, which is written KEY=VALUE, without dashes: "
            f"{' or '.join(overrides)}"
        )
    elif (other := meant_option(option.lstrip("-"))) and other.split()[0] != option:
        _print_error(f"{option} is written {other}")


def _check_model_stays(overrides: list[str]) -> None:
    for override in overrides:
        if override.startswith("model."):
            raise UsageError(
                f"the checkpoint determines the model, so '{override}' cannot be applied; remove it"
            )


def _check_evaluated(overrides: list[str]) -> None:
    from maskformer.config.load import override_keys

    unused = [
        key
        for key in override_keys(overrides)
        if f"{key}.".startswith(NOT_EVALUATED) and key not in EVALUATED
    ]
    if unused:
        raise UsageError(
            f"{', '.join(unused[:5])}: no effect on evaluation, which uses only data.* (except "
            f"data.augmentation), eval.* and {', '.join(EVALUATED)}; omit such keys"
        )


def _is_override(text: str) -> bool:
    """Whether a text is KEY=VALUE, and not an existing file, or a matching pattern, with `=`."""
    key, equals, _ = text.partition("=")
    is_key = bool(equals) and all(part.isidentifier() for part in key.split("."))
    return is_key and not (Path(text).exists() or glob.glob(text))  # noqa: PTH207


def _print_error(message: str, style: str | None = None) -> None:
    from rich.console import Console

    for argument in sys.argv:
        for path in (argument, argument.partition("=")[2]):
            if "\n" in path:  # escape line breaks of paths, but not those of the message
                message = message.replace(path, escape(path))
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    errors.print(escape(message, newlines=True), style=style)


def _is_backend_error(error: Exception) -> bool:
    from mfkernels.backend import BackendError

    return isinstance(error, BackendError)


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    if isinstance(error, MemoryError):
        return True
    import torch

    # On a CPU, PyTorch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
